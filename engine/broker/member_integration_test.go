//go:build integration

package broker

import (
	"testing"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// The embedded broker's group coordinator is not Kafka's, which refuses words that are no consumer's.
func TestIntegrationMembersCopartitioned(t *testing.T) {
	membersCopartitioned(t, []string{realkafka.Shared(t).Addr()}, rubbishData)
}

// Kafka gives a static member that comes back its old assignment and does not ask the group, whatever the member says.
func TestIntegrationStaticMemberComesBackElsewhere(t *testing.T) {
	staticMemberComesBack(t, []string{realkafka.Shared(t).Addr()})
}
