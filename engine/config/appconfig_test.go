package config

import (
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/manifest"
)

// appConfig are the fields of the original's KasprAppConfig with a value unlike their default. Each must do something, or say
// why it does not.
var appConfig = map[string]string{
	"tableDir": "elsewhere", "topicReplicationFactor": "2", "topicPartitions": "7", "topicAllowDeclare": "false",
	"keySerializer": "json", "valueSerializer": "raw",
	"schedulerEnabled": "true", "schedulerDebugStatsEnabled": "true", "schedulerTopicPartitions": "5",
	"schedulerCheckpointSaveIntervalSeconds": "2.5", "schedulerDispatcherDefaultCheckpointLookbackDays": "3",
	"schedulerDispatcherCheckpointInterval": "11.5", "schedulerJanitorCheckpointInterval": "12.5",
	"schedulerJanitorCleanIntervalSeconds": "4.5", "schedulerJanitorHighwaterOffsetSeconds": "1000.5",
	"schedulerCronEnabled": "true", "schedulerCronTickIntervalSeconds": "20.5", "schedulerCronTickBufferSeconds": "500.5",
	"schedulerCronMinIntervalSeconds": "6.5",
	"storeRocksdbWriteBufferSize":     "1048576", "storeRocksdbMaxWriteBufferNumber": "4", "storeRocksdbTargetFileSizeBase": "2097152",
	"storeRocksdbBlockCacheSize": "4194304", "storeRocksdbBlockCacheCompressedSize": "8388608", "storeRocksdbBloomFilterSize": "10",
	"storeRocksdbSetCacheIndexAndFilterBlocks": "true",
	"webBasePath": "/api", "webPort": "7070", "webMetricsBasePath": "/internal",
}

// A setting of a KasprApp that is accepted and forgotten is worse than one that is refused.
func TestAppConfig(t *testing.T) {
	if len(appConfig) != 29 {
		t.Errorf("%d fields, but KasprAppConfig has 29", len(appConfig))
	}
	for name, value := range appConfig {
		text := "apiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: a}\nspec: {config: {" + name + ": " + value + "}}\n"
		set, problems := manifest.Parse("app.yaml", []byte(text))
		if problems.Fatal() {
			t.Fatal(name, problems)
		}
		c, problems := Read(Sources{}).Config(set.Apps[0])
		if problems.Fatal() {
			t.Errorf("%s: %v", name, problems)
		}
		for _, e := range c.Explain() {
			if e.Key != name {
				continue
			}
			if e.Value == e.Default || !strings.HasPrefix(e.Source, "KasprApp app.yaml:4:") {
				t.Errorf("%s is not applied: %+v", name, e)
			}
			if s := rows[name]; s.get == nil && s.unused == "" {
				t.Errorf("%s goes nowhere, and nobody is told why", name)
			}
			if told := strings.Contains(problems.Error(), NotUsed); told == (e.Unused == "") && !rows[name].quiet {
				t.Errorf("%s: unused %q, and the user is told %q", name, e.Unused, problems.Error())
			}
		}
	}
}
