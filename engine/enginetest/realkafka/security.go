//go:build integration

package realkafka

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Token is a bearer token that listeners with OAUTHBEARER accept: unsigned, as Kafka's development validator wants it.
func Token(subject string, lifetime time.Duration) string {
	now := time.Now()
	part := func(json string) string { return base64.RawURLEncoding.EncodeToString([]byte(json)) }
	return part(`{"alg":"none"}`) + "." +
		part(fmt.Sprintf(`{"sub":%q,"iat":%d,"exp":%d}`, subject, now.Unix(), now.Add(lifetime).Unix())) + "."
}

// secure adds one listener's properties.
func (b *Broker) secure(properties map[string]string, l Listener, users map[string]string) error {
	prefix := "listener.name." + strings.ToLower(l.Name) + "."
	if strings.HasPrefix(l.Protocol, "SASL_") {
		properties[prefix+"sasl.enabled.mechanisms"] = strings.Join(l.Mechanisms, ",")
		for _, mechanism := range l.Mechanisms {
			login, ok := loginModule(mechanism, users)
			if !ok {
				return fmt.Errorf("listener %s: no login module for %s", l.Name, mechanism)
			}
			properties[prefix+strings.ToLower(mechanism)+".sasl.jaas.config"] = login
		}
	}
	if strings.HasSuffix(l.Protocol, "SSL") {
		if err := b.MakeKeys(); err != nil {
			return err
		}
		properties[prefix+"ssl.keystore.type"] = "PEM"
		properties[prefix+"ssl.keystore.location"] = b.ServerFile()
		properties[prefix+"ssl.truststore.type"] = "PEM"
		properties[prefix+"ssl.truststore.location"] = b.CAFile()
		if l.ClientCert {
			properties[prefix+"ssl.client.auth"] = "required"
		}
	}
	return nil
}

func loginModule(mechanism string, users map[string]string) (string, bool) {
	const packages = "org.apache.kafka.common.security."
	switch mechanism {
	case "PLAIN":
		login := packages + "plain.PlainLoginModule required"
		for _, user := range slices.Sorted(maps.Keys(users)) {
			login += fmt.Sprintf(" user_%s=%q", user, users[user])
		}
		return login + ";", true
	case "SCRAM-SHA-256", "SCRAM-SHA-512":
		return packages + "scram.ScramLoginModule required;", true
	case "OAUTHBEARER":
		return packages + `oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";`, true
	}
	return "", false
}
