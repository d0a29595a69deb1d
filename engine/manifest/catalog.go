package manifest

// IDs of the problems this package and engine/plan report. An ID keeps its meaning for good: it is what users search for.
const (
	Unreadable      = "M001"
	BadYAML         = "M002"
	TooBig          = "M003"
	NotAManifest    = "M004"
	UnknownKind     = "M005"
	OtherKind       = "M006"
	DuplicateKey    = "M007"
	UnknownMember   = "M008"
	MissingMember   = "M009"
	WrongType       = "M010"
	WrongWord       = "M011"
	Undefined       = "M012"
	Contradiction   = "M013"
	OldName         = "M014"
	OutOfRange      = "M015"
	BadDuration     = "M016"
	BadPattern      = "M017"
	BadTopicName    = "M018"
	BadIdentifier   = "M019"
	DuplicateName   = "M020"
	NamedTwice      = "M021"
	EmptyPipeline   = "M022"
	UnusedOperation = "M023"
	NoAppLabel      = "M024"
	BadName         = "M025"
	EmptyCode       = "M026"
	FoldedCode      = "M027"
	NoEffect        = "M028"
	NoManifests     = "M029"
	BadSchedule     = "M030"
	Cycle           = "M031"
	UnreadChannel   = "M032"
	BadPath         = "M033"
	DuplicateRoute  = "M034"
	BadRequirement  = "M035"
	NotCompacted    = "M036"

	UnknownApp       = "M040"
	WhichApp         = "M041"
	NotSupported     = "M042"
	TopicConflict    = "M043"
	DeadLetterLoop   = "M044"
	NothingToRun     = "M045"
	NotDeclared      = "M046"
	EnvironmentUnset = "M047"
	NameTooLong      = "M048"
	EmptyApp         = "M049"
	PartitionCount   = "M050"
	BadTableOption   = "M051"
	BadSchema        = "M052"
	NoRegistry       = "M053"
)

// Entry of the catalogue of problems: docs/manifest-errors.md is made of it.
type catalogEntry struct {
	ID, What, Do string
	Level        Level
}

// Catalog lists every ID with its meaning, in order.
var catalog = []catalogEntry{
	{Unreadable, "A file or directory cannot be read.", "Check the path and its permissions.", LevelError},
	{BadYAML, "The text is not YAML.", "The line is where the parser gave up; the cause may be the line above. Indent with spaces.", LevelError},
	{TooBig, "A file, its nesting or its aliases exceed a limit.", "Split the file; write repeated parts out.", LevelError},
	{NotAManifest, "A document is not a mapping with apiVersion and kind.", "Start it with `apiVersion: kaspr.io/v1alpha1` and a kind.", LevelError},
	{UnknownKind, "apiVersion or kind is of this group, or nearly, but unknown.", "Use kaspr.io/v1alpha1 and KasprApp, KasprAgent, KasprTable, KasprWebView, KasprTask or KasprJoin.", LevelError},
	{OtherKind, "A document of another API group was skipped.", "Nothing, if it is meant for Kubernetes.", LevelWarning},
	{DuplicateKey, "A mapping holds the same key twice.", "Remove one of them.", LevelError},
	{UnknownMember, "A member is not known at this place.", "Check the spelling and the indentation.", LevelError},
	{MissingMember, "A required member is not there.", "Add it.", LevelError},
	{WrongType, "A value has the wrong type.", "Write text in quotes, numbers and booleans without.", LevelError},
	{WrongWord, "A value is not one of the allowed words.", "Use one of the words listed.", LevelError},
	{Undefined, "A name refers to something that is not defined.", "Define it, or correct the name.", LevelError},
	{Contradiction, "Members exclude each other, or none of them is there.", "Keep exactly one.", LevelError},
	{OldName, "A member or a word has a name that older texts give it; it is accepted.", "Use the name given.", LevelWarning},
	{OutOfRange, "A number is out of its range.", "Use a number within the bounds given.", LevelError},
	{BadDuration, "A value is not a duration.", "Write digits and s, m, h or d, such as 30s, or Go's form, such as 1m30s.", LevelError},
	{BadPattern, "A pattern is not a regular expression of RE2.", "RE2 has neither lookaround nor backreferences.", LevelError},
	{BadTopicName, "Kafka does not allow this topic name.", "Use up to 249 of the characters a-z A-Z 0-9 . _ -", LevelError},
	{BadIdentifier, "A name is not usable as a Python identifier.", "Use letters, digits and _, and no keyword.", LevelError},
	{DuplicateName, "Two components of one kind and app have the same name.", "Rename one of them.", LevelError},
	{NamedTwice, "A list names the same thing twice.", "Remove or rename one of them.", LevelError},
	{EmptyPipeline, "A pipeline has no operation: nothing would be done.", "List operations by name.", LevelError},
	{UnusedOperation, "An operation is defined but not in the pipeline.", "Add it to the pipeline or remove it.", LevelWarning},
	{NoAppLabel, "A component does not say which app it belongs to.", "Add the label kaspr.io/app.", LevelError},
	{BadName, "A name is not a Kubernetes name.", "Use lower-case letters, digits, - and . , beginning and ending with a letter or digit.", LevelError},
	{EmptyCode, "A Code block holds no Python.", "Write the function, or remove the member.", LevelError},
	{FoldedCode, "Python stands in a folded block (>), which joins its lines.", "Use a literal block: `python: |`.", LevelWarning},
	{NoEffect, "A member has no effect here.", "Remove it, or add what it needs.", LevelWarning},
	{NoManifests, "No manifests were found.", "Name a file, or a directory with *.yaml or *.yml files.", LevelError},
	{BadSchedule, "A task's cron expression or time zone is not valid.", "Five fields, or six with seconds last; IANA zone names.", LevelError},
	{Cycle, "Agents feed each other through channels, in a circle.", "Break the circle; records that shall go round go through a topic.", LevelError},
	{UnreadChannel, "No agent reads a channel.", "Add the agent, or remove what sends to the channel.", LevelWarning},
	{BadPath, "The path of a web view is not valid.", "Write text, `{name}` and `{name:pattern}`, such as `/orders/{id}`.", LevelError},
	{DuplicateRoute, "Two web views answer the same method on the same path.", "Change the path or the method of one.", LevelError},
	{BadRequirement, "A Python package or the URL of an index is not written as the installer takes it.", "One requirement an item, without blanks; an http or https URL.", LevelError},
	{NotCompacted, "A table's changelog would not be compacted: what Kafka deletes from it is missing in a table that is restored.", "Leave cleanup.policy out, or write compact, or compact,delete.", LevelWarning},

	{UnknownApp, "A component's app, or the app asked for, has no KasprApp manifest.", "Correct the label, or add the KasprApp.", LevelError},
	{WhichApp, "The manifests hold several apps, and this is for one; or none has a name.", "Say which with --app or the setting app.", LevelError},
	{NotSupported, "This version does not run this kind or member yet.", "Leave it out for now.", LevelError},
	{TopicConflict, "Two declarations of one topic differ.", "Declare it once, or alike.", LevelError},
	{DeadLetterLoop, "A dead-letter topic is also an input of its agent.", "Use another topic.", LevelError},
	{NothingToRun, "The manifests hold no app.", "Add a KasprApp, or components with the label kaspr.io/app.", LevelError},
	{NotDeclared, "A topic is not created because topicAllowDeclare is false.", "Create the topic by other means.", LevelWarning},
	{EnvironmentUnset, "A variable of the app's environment has no value here.", "Set it in the environment of the process.", LevelWarning},
	{NameTooLong, "A name the engine makes is too long for Kafka.", "Shorten the names it is made of.", LevelError},
	{EmptyApp, "The app has no components: it would run and do nothing.", "Check the label kaspr.io/app of the components.", LevelWarning},
	{PartitionCount, "A table and the topic whose records write to it have different numbers of partitions.", "A record's partition is that of its table writes: create one of them anew with the other's number.", LevelError},
	{BadTableOption, "An option of a table's store is unknown, or has a value that it cannot have.", "docs/tables.md lists the options.", LevelError},
	{BadSchema, "A schema cannot be read, or has no subject in the registry.", "The message says what is wrong with it; docs/serializers.md tells how subjects are named.", LevelError},
	{NoRegistry, "A serializer has its schemas in a registry, and there is none.", "Set schemaRegistryUrl where the app runs.", LevelWarning},
}
