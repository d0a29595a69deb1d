// Package realkafka starts a real Apache Kafka on loopback for the integration tests (build tag integration).
//
// The broker is one KRaft node: its jars come from Maven Central by the pom.xml beside this file and are checked against
// jars.sha256; its ports, data and log are its own. It dies with the process that started it, however that ends.
//
//	func TestMain(m *testing.M) { os.Exit(realkafka.Run(m)) }
//
//	func TestOffsetsSurviveABrokerCrash(t *testing.T) {
//		broker := realkafka.Shared(t) // one for all tests of the binary; realkafka.New(t, …) for one of one's own
//		…
//		broker.Kill(); broker.Restart(t.Context())
package realkafka
