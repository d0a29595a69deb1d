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

// What tls and authentication of a KasprApp stand for; another protocol does not get through to the brokers (settings.md 6.1).
func TestAppSecurity(t *testing.T) {
	for _, c := range []struct{ authentication, protocol, encrypted, mechanism string }{
		{"{type: plain}", "PLAINTEXT", "SSL", ""},
		{"{type: plain, username: u}", "SASL_PLAINTEXT", "SASL_SSL", Plain},
		{"{type: scram-sha-256, username: u}", "SASL_PLAINTEXT", "SASL_SSL", ScramSHA256},
		{"{type: scram-sha-512, username: u}", "SASL_PLAINTEXT", "SASL_SSL", ScramSHA512},
	} {
		for tls, protocol := range map[string]string{"": c.protocol, ", tls: {}": c.encrypted} {
			set, problems := manifest.Parse("app.yaml", []byte("apiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: a}\nspec: {authentication: "+c.authentication+tls+"}\n"))
			if problems.Fatal() {
				t.Fatal(problems)
			}
			cfg, problems := Read(Sources{Environ: []string{"K_KAFKA_AUTH_PASSWORD=p"}}).Config(set.Apps[0])
			k := cfg.Kafka
			if problems.Fatal() || k.SecurityProtocol != protocol || k.UsesSASL() != (c.mechanism != "") || k.UsesSASL() && (k.SASL.Mechanism != c.mechanism || k.SASL.Username != "u") {
				t.Errorf("%s%s: %s, %+v, %v", c.authentication, tls, k.SecurityProtocol, k.SASL, problems)
			}
		}
	}
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
