package manifest

import (
	"regexp"
	"unicode"
)

// topicNameMax is Kafka's limit: names become directory names with a suffix.
const topicNameMax = 249

var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

// TopicNameProblem says what Kafka would refuse about a topic name; "" when it is legal.
func TopicNameProblem(name string) string {
	switch {
	case name == "":
		return "is empty"
	case name == "." || name == "..":
		return "is a reserved name"
	case len(name) > topicNameMax:
		return "is longer than 249 characters"
	case !topicName.MatchString(name):
		return "has characters other than a-z A-Z 0-9 . _ -"
	}
	return ""
}

var kubernetesName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// pythonKeywords are CPython 3.13's hard keywords.
var pythonKeywords = map[string]bool{
	"False": true, "None": true, "True": true, "and": true, "as": true, "assert": true, "async": true, "await": true,
	"break": true, "class": true, "continue": true, "def": true, "del": true, "elif": true, "else": true, "except": true,
	"finally": true, "for": true, "from": true, "global": true, "if": true, "import": true, "in": true, "is": true,
	"lambda": true, "nonlocal": true, "not": true, "or": true, "pass": true, "raise": true, "return": true, "try": true,
	"while": true, "with": true, "yield": true,
}

// identifierProblem says why a name cannot be a Python identifier; "" when it can. Names are compared by the guest
// after Unicode normalisation, which is not repeated here: it never makes an identifier of something that is none.
func identifierProblem(name string) string {
	if pythonKeywords[name] {
		return "is a Python keyword"
	}
	for i, r := range name {
		switch {
		case r == '_' || unicode.IsLetter(r) || unicode.Is(unicode.Nl, r):
		case i > 0 && (unicode.IsDigit(r) || unicode.Is(unicode.Mn, r) || unicode.Is(unicode.Mc, r) || unicode.Is(unicode.Pc, r)):
		default:
			return "is not a Python identifier"
		}
	}
	if name == "" {
		return "is empty"
	}
	return ""
}
