package config

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"

	"kaspr.io/kaspr/engine/manifest"
)

var applicationID = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,200}$`)

// checker looks at settings together. A rule is left out when one of its settings is wrong by itself.
type checker struct {
	from     map[string]given
	bad      map[string]bool
	problems manifest.Errors
}

func (c *checker) ok(keys ...string) bool {
	for _, key := range keys {
		if c.bad[key] {
			return false
		}
	}
	return true
}

// given tells whether a setting is not just its default.
func (c *checker) given(key string) bool { return c.from[key].Layer != layerDefault }

// at is the place to blame: that of the first key that is not just its default.
func (c *checker) at(keys []string) manifest.Pos {
	for _, key := range keys {
		if c.given(key) {
			return c.from[key].Pos
		}
	}
	return manifest.Pos{File: "settings"}
}

func (c *checker) fail(id, text, hint string, keys ...string) {
	c.problems = append(c.problems, manifest.Error{Pos: c.at(keys), ID: id, Text: text, Hint: hint})
}

func (c *checker) warn(id, text, hint string, keys ...string) {
	c.problems = append(c.problems, manifest.Error{Pos: c.at(keys), ID: id, Level: manifest.LevelWarning, Text: text, Hint: hint})
}

// atMost demands that a does not exceed b.
func (c *checker) atMost(a, b string, holds bool) {
	if c.ok(a, b) && !holds {
		c.fail(Contradiction, fmt.Sprintf("%s (%s) must not exceed %s (%s)", a, c.from[a].Text, b, c.from[b].Text), "", a, b)
	}
}

func (c Config) check(from map[string]given, bad map[string]bool, offline bool) manifest.Errors {
	k := &checker{from: from, bad: bad}
	if c.AppName != "" && !applicationID.MatchString(c.AppName) {
		k.fail(BadValue, "appName "+fmt.Sprintf("%q", c.AppName)+" must be up to 200 of the characters a-z A-Z 0-9 . _ -", "it begins the names of topics", "appName")
	}
	if !offline {
		c.Kafka.check(k)
		c.Registry.check(k)
	}
	k.atMost("brokerSessionTimeout", "brokerRequestTimeout", c.Kafka.SessionTimeout <= c.Kafka.RequestTimeout)
	if k.ok("brokerHeartbeatInterval", "brokerSessionTimeout") && c.Kafka.HeartbeatInterval*2 > c.Kafka.SessionTimeout {
		k.fail(Contradiction, fmt.Sprintf("brokerHeartbeatInterval (%s) must be at most half of brokerSessionTimeout (%s)",
			from["brokerHeartbeatInterval"].Text, from["brokerSessionTimeout"].Text), "", "brokerHeartbeatInterval", "brokerSessionTimeout")
	}
	k.atMost("batchRecordsMax", "queueRecordsMax", c.Batch.RecordsMax <= c.QueueRecordsMax)
	k.atMost("sandboxTick", "sandboxDeadline", c.Sandbox.Tick <= c.Sandbox.Deadline)
	if c.ProcessingGuarantee == ExactlyOnce && k.ok("processingGuarantee", "commitInterval", "transactionTimeout") && c.CommitInterval*2 > c.TransactionTimeout {
		k.fail(Contradiction, fmt.Sprintf("commitInterval (%s) must be at most half of transactionTimeout (%s): the broker would abort every transaction",
			from["commitInterval"].Text, from["transactionTimeout"].Text), "", "commitInterval", "transactionTimeout")
	}
	c.Web.check(k)
	if s := c.Store; s.MemoryMax > 0 && k.ok("storeMemoryMax", "storeRocksdbBlockCacheSize") && s.BlockCacheSize > s.MemoryMax/3*2 {
		k.fail(Contradiction, fmt.Sprintf("storeRocksdbBlockCacheSize (%s) must leave a third of storeMemoryMax (%s) to the write buffers",
			from["storeRocksdbBlockCacheSize"].Text, from["storeMemoryMax"].Text), "", "storeRocksdbBlockCacheSize", "storeMemoryMax")
	}
	if s := c.Scheduler; k.ok("schedulerCronTickBufferSeconds", "schedulerCronTickIntervalSeconds", "schedulerCronMinIntervalSeconds") {
		if s.CronTickBuffer <= s.CronTickInterval {
			k.fail(Contradiction, "schedulerCronTickBufferSeconds must be longer than schedulerCronTickIntervalSeconds", "",
				"schedulerCronTickBufferSeconds", "schedulerCronTickIntervalSeconds")
		} else if s.CronTickBuffer < 2*s.CronMinInterval {
			k.fail(Contradiction, "schedulerCronTickBufferSeconds must be at least twice schedulerCronMinIntervalSeconds", "",
				"schedulerCronTickBufferSeconds", "schedulerCronMinIntervalSeconds")
		}
	}
	return k.problems
}

func (w Web) check(c *checker) {
	if l := w.AdminAddress(); l != "" && c.ok("adminListen") {
		if host, port, err := net.SplitHostPort(l); err != nil || port == "" {
			c.fail(BadValue, fmt.Sprintf("adminListen %q must be host:port, or off", l), AdminListenDefault, "adminListen")
		} else if ip := net.ParseIP(host); w.AdminToken+w.AdminTLS.ClientCAFile == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			c.fail(Missing, fmt.Sprintf("adminListen %q is reachable by others, and shows data of tables: it needs adminToken or adminTlsClientCaFile", l), "", "adminListen")
		}
	}
	w.TLS.check(c, "web")
	w.AdminTLS.check(c, "admin")
	c.readable("webTlsCaFile", w.PeerCAFile)
}

func (t ListenerTLS) check(c *checker, of string) {
	cert, key, clients := of+"TlsCertFile", of+"TlsKeyFile", of+"TlsClientCaFile"
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		c.fail(Missing, cert+" and "+key+" need each other", "", cert, key)
	case t.ClientCAFile != "" && t.CertFile == "":
		c.fail(Missing, clients+" needs "+cert+" and "+key+": without TLS there are no client certificates", "", clients)
	}
	c.readable(cert, t.CertFile)
	c.readable(key, t.KeyFile)
	c.readable(clients, t.ClientCAFile)
}

func (k Kafka) check(c *checker) {
	if !c.ok("kafkaSecurityProtocol", "kafkaSaslMechanism") {
		return
	}
	if k.UsesSASL() {
		k.SASL.check(c)
	} else {
		for _, key := range []string{
			"kafkaSaslMechanism", "kafkaAuthUsername", "kafkaAuthPassword", "kafkaAuthPasswordFile",
			"kafkaOauthToken", "kafkaOauthTokenFile", "kafkaOauthTokenEndpoint",
		} {
			if c.given(key) {
				c.warn(NotUsed, fmt.Sprintf("%s has no effect with kafkaSecurityProtocol %s", c.from[key].Name, k.SecurityProtocol), "use SASL_SSL or SASL_PLAINTEXT to log in", key)
				break
			}
		}
	}
	tls := []string{"kafkaTlsCaFile", "kafkaTlsCaPath", "kafkaTlsCaData", "kafkaTlsCertFile", "kafkaTlsKeyFile", "kafkaTlsServerName"}
	if !k.UsesTLS() {
		for _, key := range tls {
			if c.given(key) {
				c.warn(NotUsed, fmt.Sprintf("%s has no effect with kafkaSecurityProtocol %s", c.from[key].Name, k.SecurityProtocol), "use SSL or SASL_SSL to encrypt", key)
				break
			}
		}
		return
	}
	if (k.TLS.CertFile == "") != (k.TLS.KeyFile == "") {
		c.fail(Missing, "kafkaTlsCertFile and kafkaTlsKeyFile need each other", "", "kafkaTlsCertFile", "kafkaTlsKeyFile")
	}
	c.readable("kafkaTlsCaFile", k.TLS.CAFile)
	c.readable("kafkaTlsCaPath", k.TLS.CAPath)
	c.readable("kafkaTlsCertFile", k.TLS.CertFile)
	c.readable("kafkaTlsKeyFile", k.TLS.KeyFile)
}

func (r Registry) check(c *checker) {
	if r.Password != "" && r.PasswordFile != "" {
		c.fail(Contradiction, "schemaRegistryPassword and schemaRegistryPasswordFile exclude each other", "keep one", "schemaRegistryPasswordFile")
	}
	if r.Token != "" && r.TokenFile != "" {
		c.fail(Contradiction, "schemaRegistryToken and schemaRegistryTokenFile exclude each other", "keep one", "schemaRegistryTokenFile")
	}
	if r.Username != "" && r.Token+r.TokenFile != "" {
		c.fail(Contradiction, "schemaRegistryUsername and a token exclude each other", "keep one", "schemaRegistryUsername")
	}
	if r.Password+r.PasswordFile != "" && r.Username == "" {
		c.fail(Missing, "schemaRegistryUsername is needed with a password", "", "schemaRegistryPassword", "schemaRegistryPasswordFile")
	}
	if (r.TLS.CertFile == "") != (r.TLS.KeyFile == "") {
		c.fail(Missing, "schemaRegistryTlsCertFile and schemaRegistryTlsKeyFile need each other", "", "schemaRegistryTlsCertFile", "schemaRegistryTlsKeyFile")
	}
	c.readable("schemaRegistryPasswordFile", r.PasswordFile)
	c.readable("schemaRegistryTokenFile", r.TokenFile)
	c.readable("schemaRegistryTlsCaFile", r.TLS.CAFile)
	c.readable("schemaRegistryTlsCertFile", r.TLS.CertFile)
	c.readable("schemaRegistryTlsKeyFile", r.TLS.KeyFile)
}

func (s SASL) check(c *checker) {
	if s.Mechanism == OAuthBearer {
		s.OAuth.check(c)
		return
	}
	for _, need := range []struct{ key, value, or, alternative string }{
		{"kafkaAuthUsername", s.Username, "", ""},
		{"kafkaAuthPassword", s.Password, "kafkaAuthPasswordFile", s.PasswordFile},
	} {
		if need.value != "" || need.alternative != "" {
			continue
		}
		text := need.key
		if need.or != "" {
			text += " or " + need.or
		}
		text += " is needed to log in with " + s.Mechanism
		if c.from["kafkaSecurityProtocol"].Layer == layerApp {
			// A KasprApp refers to a Secret that only the cluster has: not a mistake of its author.
			c.warn(Missing, text, "", "kafkaSecurityProtocol")
			continue
		}
		c.fail(Missing, text, "", "kafkaSaslMechanism", "kafkaSecurityProtocol")
	}
	if s.Password != "" && s.PasswordFile != "" {
		c.fail(Contradiction, "kafkaAuthPassword and kafkaAuthPasswordFile exclude each other", "keep one", "kafkaAuthPasswordFile")
	}
	c.readable("kafkaAuthPasswordFile", s.PasswordFile)
}

func (o OAuth) check(c *checker) {
	sources := 0
	for _, v := range []string{o.Token, o.TokenFile, o.TokenEndpoint} {
		if v != "" {
			sources++
		}
	}
	keys := []string{"kafkaOauthToken", "kafkaOauthTokenFile", "kafkaOauthTokenEndpoint"}
	switch {
	case sources == 0:
		c.fail(Missing, "one of kafkaOauthToken, kafkaOauthTokenFile, kafkaOauthTokenEndpoint is needed to log in with OAUTHBEARER", "", "kafkaSaslMechanism")
	case sources > 1:
		c.fail(Contradiction, "kafkaOauthToken, kafkaOauthTokenFile and kafkaOauthTokenEndpoint exclude each other", "keep one", keys...)
	}
	c.readable("kafkaOauthTokenFile", o.TokenFile)
	if o.TokenEndpoint == "" {
		return
	}
	if u, err := url.Parse(o.TokenEndpoint); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		c.fail(BadValue, "kafkaOauthTokenEndpoint must be an http or https URL", "", "kafkaOauthTokenEndpoint")
	}
	if o.ClientID == "" {
		c.fail(Missing, "kafkaOauthClientId is needed with kafkaOauthTokenEndpoint", "", "kafkaOauthTokenEndpoint")
	}
	switch {
	case o.ClientSecret == "" && o.ClientSecretFile == "":
		c.fail(Missing, "kafkaOauthClientSecret or kafkaOauthClientSecretFile is needed with kafkaOauthTokenEndpoint", "", "kafkaOauthTokenEndpoint")
	case o.ClientSecret != "" && o.ClientSecretFile != "":
		c.fail(Contradiction, "kafkaOauthClientSecret and kafkaOauthClientSecretFile exclude each other", "keep one", "kafkaOauthClientSecretFile")
	}
	c.readable("kafkaOauthClientSecretFile", o.ClientSecretFile)
}

// readable finds a file that is missing now rather than at the first connection.
func (c *checker) readable(key, file string) {
	if file == "" {
		return
	}
	f, err := os.Open(file)
	if err != nil {
		c.fail(Unreadable, fmt.Sprintf("%s: cannot read %s: %s", c.from[key].Name, file, reason(err)), "", key)
		return
	}
	_ = f.Close() // only opened
}
