package config

import "kaspr.io/kaspr/engine/manifest"

// IDs of the problems settings can have. An ID keeps its meaning for good.
const (
	UnknownSetting = "C001"
	Unreadable     = "C002"
	BadValue       = "C003"
	OutOfRange     = "C004"
	Contradiction  = "C005"
	Missing        = "C006"
	// Number 7 is retired: it said that exactly_once had not come yet.
	SetTwice        = "C008"
	NotForApp       = "C009"
	NotUsed         = "C010"
	UnknownVariable = "C011"
	BadDotEnv       = "C012"
)

// catalog is the list in docs/settings.md.
var catalog = []struct {
	id    string
	level manifest.Level
	what  string
}{
	{UnknownSetting, manifest.LevelError, "The settings file, the KasprApp or a flag names a setting there is not."},
	{Unreadable, manifest.LevelError, "A file that a setting names, or the settings file itself, cannot be read."},
	{BadValue, manifest.LevelError, "A value is not what the setting takes."},
	{OutOfRange, manifest.LevelError, "A value is outside the setting's bounds."},
	{Contradiction, manifest.LevelError, "Settings contradict each other."},
	{Missing, manifest.LevelError, "A setting is needed because of another one."},
	{SetTwice, manifest.LevelError, "A setting is written under two of its names in one place."},
	{NotForApp, manifest.LevelError, "The setting is the engine's own; a KasprApp cannot hold it."},
	{NotUsed, manifest.LevelWarning, "The setting has no effect, in this version or beside the others."},
	{UnknownVariable, manifest.LevelWarning, "A variable KASPR_… of the environment is no setting, or K_… is nearly one."},
	{BadDotEnv, manifest.LevelError, "A line of the .env file is not NAME=value."},
}
