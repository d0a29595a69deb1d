package broker

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/record"
)

// A broker that has just started, or never had a group, has no coordinator for a moment: whoever asks then for a group's offsets, or for what a
// process left in it, waits for the answer instead of being told an error.
func TestCoordinatorIsNotThereYet(t *testing.T) {
	c := newCluster(t, 1)
	admin, err := NewAdmin(c.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	refused := 0
	for _, code := range []int16{kerr.CoordinatorNotAvailable.Code, kerr.CoordinatorLoadInProgress.Code, kerr.CoordinatorNotAvailable.Code, kerr.NotCoordinator.Code} {
		c.fake.ControlKey(int16(kmsg.FindCoordinator), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
			req := kreq.(*kmsg.FindCoordinatorRequest)
			resp := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
			for _, key := range req.CoordinatorKeys {
				one := kmsg.NewFindCoordinatorResponseCoordinator()
				one.Key, one.NodeID, one.ErrorCode = key, -1, code
				resp.Coordinators = append(resp.Coordinators, one)
			}
			refused++
			return resp, nil, true
		})
	}
	if at, err := admin.Committed(c.ctx, "nobody"); err != nil || len(at) != 0 || refused < 2 {
		t.Errorf("offsets: %v, %v, after %d refusals", at, err, refused)
	}
	if members, err := admin.Left(c.ctx, "nobody else", "client"); err != nil || len(members) != 0 || refused != 4 {
		t.Errorf("members: %v, %v, after %d refusals", members, err, refused)
	}
}

// What was processed is deleted where the broker allows it, also when it does not for another topic; the error names that one.
func TestDeleteRecords(t *testing.T) {
	c := newCluster(t, 2)
	c.produce(c.cl, 0, 10, 10)
	c.produce(c.cl, 1, 10, 10)
	admin := c.admin()
	part := func(n int32) record.Partition { return record.Partition{Topic: "log", Number: n} }
	if err := admin.DeleteRecords(c.ctx, nil); err != nil {
		t.Error(err)
	}
	err := admin.DeleteRecords(c.ctx, map[record.Partition]int64{part(0): 4, part(1): 99})
	if !errors.Is(err, kerr.OffsetOutOfRange) || !strings.Contains(err.Error(), "log/1") || strings.Contains(err.Error(), "log/0") {
		t.Errorf("the error is %v", err)
	}
	bounds, err := admin.Bounds(c.ctx, part(0), part(1))
	if want := map[record.Partition]Bounds{part(0): {4, 10}, part(1): {0, 10}}; err != nil || !maps.Equal(bounds, want) {
		t.Errorf("bounds %v, %v, want %v", bounds, err, want)
	}
}

// More replicas than there are brokers is the usual mistake on a small cluster: the error says which settings are meant, and makes no topic.
func TestEnsureWithTooManyReplicas(t *testing.T) {
	c := newCluster(t, 1)
	admin := c.admin()
	_, err := admin.Ensure(c.ctx, Topic{Name: "three", Partitions: 1, Replicas: 3})
	if !errors.Is(err, kerr.InvalidReplicationFactor) || !strings.Contains(err.Error(), "topic three with 3 replicas") || !strings.Contains(err.Error(), "topicReplicationFactor") {
		t.Errorf("the error is %v", err)
	}
	if topics, err := admin.Topics(c.ctx); err != nil || topics["three"] != 0 {
		t.Errorf("topics %v, %v", topics, err)
	}
}
