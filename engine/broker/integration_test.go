//go:build integration

package broker

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
	"kaspr.io/kaspr/engine/record"
)

func TestMain(m *testing.M) { os.Exit(realkafka.Run(m)) }

// A successor that reads offsets a pending transaction is about to change would process its records twice.
func TestStableOffsetsWaitForAPendingTransaction(t *testing.T) {
	c := clusterAt(t, realkafka.Shared(t).Addr())
	if _, err := c.adm.CreateTopic(c.ctx, 1, 1, nil, "log"); err != nil {
		t.Fatal(err)
	}
	admin := c.admin()
	ps := []record.Partition{log0}
	if at, err := admin.StableOffsets(c.ctx, "group", ps); err != nil || len(at) != 0 {
		t.Fatalf("offsets of a new group: %v, %v", at, err)
	}
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.TxnOffsetCommit), 4) // later ones name topics by ID
	tx := c.client(kgo.TransactionalID("tx"), kgo.MaxVersions(versions))
	if err := tx.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	c.produce(tx, 0, 1, 10)
	id, epoch, err := tx.ProducerID(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	add := kmsg.NewPtrAddOffsetsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = "tx", id, epoch, "group"
	if resp, err := add.RequestWith(c.ctx, tx); err != nil || resp.ErrorCode != 0 {
		t.Fatal(resp, err)
	}
	commit := kmsg.NewPtrTxnOffsetCommitRequest()
	commit.TransactionalID, commit.ProducerID, commit.ProducerEpoch, commit.Group, commit.Generation = "tx", id, epoch, "group", -1
	topic := kmsg.NewTxnOffsetCommitRequestTopic()
	topic.Topic = "log"
	part := kmsg.NewTxnOffsetCommitRequestTopicPartition()
	part.Offset = 7
	topic.Partitions = append(topic.Partitions, part)
	commit.Topics = append(commit.Topics, topic)
	if resp, err := commit.RequestWith(c.ctx, tx); err != nil || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatal(resp, err)
	}
	short, cancel := context.WithTimeout(c.ctx, 500*time.Millisecond)
	defer cancel()
	if at, err := admin.StableOffsets(short, "group", ps); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, %v while the transaction was open", at, err)
	}
	if err := tx.EndTransaction(c.ctx, kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	at, err := admin.StableOffsets(c.ctx, "group", ps)
	if err != nil || at[log0].Offset != 7 {
		t.Errorf("got %v, %v", at, err)
	}
}
