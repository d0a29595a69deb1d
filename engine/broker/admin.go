package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/record"
)

// Admin creates and lists topics.
type Admin struct {
	cl  *kgo.Client
	adm *kadm.Client
}

// NewAdmin returns an Admin with a connection of its own. Close it.
func NewAdmin(o Options) (*Admin, error) {
	cl, err := kgo.NewClient(append(o.clientOptions(), topicsByName())...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return &Admin{cl, kadm.NewClient(cl)}, nil
}

// Close ends the connection.
func (a *Admin) Close() { a.adm.Close() }

// Ping reaches one broker, or says why not.
func (a *Admin) Ping(ctx context.Context) error {
	_, err := a.adm.BrokerMetadata(ctx)
	return err
}

// Left is the members of a group that clients with an id have left in it: those of a process that ended without leaving are members
// until their session is over. Static members are not among them, since who takes their name takes their place.
func (a *Admin) Left(ctx context.Context, group, clientID string) ([]string, error) {
	var described kadm.DescribedGroups
	err := askCoordinator(ctx, func() (err error) {
		if described, err = a.adm.DescribeGroups(ctx, group); err == nil {
			err = described[group].Err
		}
		return err
	})
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("describe group %s: %w", group, err)
	}
	var members []string
	for _, m := range described[group].Members {
		if m.ClientID == clientID && m.InstanceID == nil {
			members = append(members, m.MemberID)
		}
	}
	return members, nil
}

// Expel takes members out of a group. One that is not a member any more is no error.
func (a *Admin) Expel(ctx context.Context, group string, members []string) error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = group
	for _, id := range members {
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = id
		req.Members = append(req.Members, m)
	}
	resp, err := req.RequestWith(ctx, a.cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("take members out of group %s: %w", group, err)
	}
	for _, m := range resp.Members {
		if one := kerr.ErrorForCode(m.ErrorCode); one != nil && !errors.Is(one, kerr.UnknownMemberID) {
			err = errors.Join(err, fmt.Errorf("take member %s out of group %s: %w", m.MemberID, group, one))
		}
	}
	return err
}

// Refused tells a broker that was reached and said no: wrong credentials, no rights, an unknown security protocol.
// Waiting does not help then.
func Refused(err error) bool {
	return errors.Is(err, kerr.SaslAuthenticationFailed) || errors.Is(err, kerr.UnsupportedSaslMechanism) ||
		errors.Is(err, kerr.ClusterAuthorizationFailed) || errors.Is(err, kerr.IllegalSaslState)
}

// Answered tells an error that a broker answered with, and would again: none of a connection, nor of a coordinator that is not there yet.
func Answered(err error) bool {
	var answer *kerr.Error
	return errors.As(err, &answer) && !answer.Retriable
}

// Topic is a topic to create.
type Topic struct {
	Name       string
	Partitions int32             // -1: the broker's default (KIP-464)
	Replicas   int16             // -1: the broker's default
	Config     map[string]string // such as cleanup.policy, retention.ms
}

// Ensure creates the topic unless it exists; an existing one is left as it is. It says whether it created it.
func (a *Admin) Ensure(ctx context.Context, t Topic) (bool, error) {
	configs := make(map[string]*string, len(t.Config))
	for k, v := range t.Config {
		configs[k] = &v
	}
	_, err := a.adm.CreateTopic(ctx, t.Partitions, t.Replicas, configs, t.Name)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, kerr.TopicAlreadyExists):
		return false, nil
	case errors.Is(err, kerr.InvalidReplicationFactor):
		return false, fmt.Errorf("create topic %s with %d replicas: %w (the cluster has fewer brokers; set replicas or topicReplicationFactor)",
			t.Name, t.Replicas, err)
	}
	return false, fmt.Errorf("create topic %s: %w", t.Name, err)
}

// Drift is one option of an existing topic that is not as declared.
type Drift struct{ Option, Declared, Is string }

// Drift compares an existing topic with what was declared: its partitions, and each option of Config.
func (a *Admin) Drift(ctx context.Context, t Topic) ([]Drift, error) {
	var drift []Drift
	details, err := a.adm.ListTopics(ctx, t.Name)
	if err == nil {
		err = details[t.Name].Err
	}
	if err != nil {
		return nil, fmt.Errorf("describe topic %s: %w", t.Name, err)
	}
	if is := len(details[t.Name].Partitions); t.Partitions > 0 && int(t.Partitions) != is {
		drift = append(drift, Drift{"partitions", strconv.Itoa(int(t.Partitions)), strconv.Itoa(is)})
	}
	if len(t.Config) == 0 {
		return drift, nil
	}
	resources, err := a.adm.DescribeTopicConfigs(ctx, t.Name)
	if err != nil {
		return drift, fmt.Errorf("describe the options of topic %s: %w", t.Name, err)
	}
	for _, r := range resources {
		if r.Err != nil {
			return drift, fmt.Errorf("describe the options of topic %s: %w", t.Name, r.Err)
		}
		for _, c := range r.Configs {
			if declared, ok := t.Config[c.Key]; ok && c.Value != nil && !sameOption(declared, *c.Value) {
				drift = append(drift, Drift{c.Key, declared, *c.Value})
			}
		}
	}
	slices.SortFunc(drift, func(a, b Drift) int { return strings.Compare(a.Option, b.Option) })
	return drift, nil
}

// MessageBytes is the largest batch of records that each topic takes (max.message.bytes). One that was just made may not be known
// everywhere yet.
func (a *Admin) MessageBytes(ctx context.Context, topics ...string) (map[string]int, error) {
	most := map[string]int{}
	var err error
	for began := time.Now(); ; {
		var resources kadm.ResourceConfigs
		resources, err = a.adm.DescribeTopicConfigs(ctx, topics...)
		for _, r := range resources {
			err = errors.Join(err, r.Err)
			for _, c := range r.Configs {
				if c.Key != "max.message.bytes" || c.Value == nil {
					continue
				}
				if n, bad := strconv.Atoi(*c.Value); bad == nil {
					most[r.Name] = n
				}
			}
		}
		if !errors.Is(err, kerr.UnknownTopicOrPartition) || time.Since(began) > madeWait || !sleep(ctx, coordinatorPause) {
			break
		}
	}
	if err != nil {
		return most, fmt.Errorf("describe the options of topics: %w", err)
	}
	return most, nil
}

// madeWait is how long a topic that was just made may be unknown to the broker that is asked.
const madeWait = 5 * time.Second

// sameOption compares lists, such as cleanup policies, in any order.
func sameOption(a, b string) bool {
	x, y := strings.Split(a, ","), strings.Split(b, ",")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// Topics lists the topics of the cluster with their partition counts, internal ones left out. It asks the broker, never
// the client's cache: who lists topics looks for new ones.
func (a *Admin) Topics(ctx context.Context) (map[string]int32, error) {
	resp, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, a.cl)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	topics := make(map[string]int32, len(resp.Topics))
	for _, t := range resp.Topics {
		if t.ErrorCode == 0 && !t.IsInternal && t.Topic != nil {
			topics[*t.Topic] = int32(len(t.Partitions))
		}
	}
	return topics, nil
}

// EndOffsets is the end of every partition of the topics; topics that do not exist are left out.
func (a *Admin) EndOffsets(ctx context.Context, topics ...string) (map[string]map[int32]int64, error) {
	return listed(ctx, "end", a.adm.ListCommittedOffsets, topics)
}

// StartOffsets is the first offset of every partition of the topics that is still there.
func (a *Admin) StartOffsets(ctx context.Context, topics ...string) (map[string]map[int32]int64, error) {
	return listed(ctx, "start", a.adm.ListStartOffsets, topics)
}

func listed(ctx context.Context, which string, list func(context.Context, ...string) (kadm.ListedOffsets, error), topics []string) (map[string]map[int32]int64, error) {
	offsets := map[string]map[int32]int64{}
	if len(topics) == 0 {
		return offsets, nil
	}
	all, err := list(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list %s offsets: %w", which, err)
	}
	var failed error
	all.Each(func(o kadm.ListedOffset) {
		switch {
		case o.Err == nil:
			if offsets[o.Topic] == nil {
				offsets[o.Topic] = map[int32]int64{}
			}
			offsets[o.Topic][o.Partition] = o.Offset
		case !errors.Is(o.Err, kerr.UnknownTopicOrPartition):
			failed = errors.Join(failed, fmt.Errorf("%s offset of %s/%d: %w", which, o.Topic, o.Partition, o.Err))
		}
	})
	return offsets, failed
}

// DeleteRecords deletes what is below an offset in each partition. Of a topic's partitions that refuse the error names the first one; those
// of the others are deleted.
func (a *Admin) DeleteRecords(ctx context.Context, below map[record.Partition]int64) error {
	var offsets kadm.Offsets
	for p, at := range below {
		offsets.AddOffset(p.Topic, p.Number, at, -1)
	}
	done, err := a.adm.DeleteRecords(ctx, offsets)
	if err != nil { // a broker that does not answer
		err = fmt.Errorf("delete records: %w", err)
	}
	last := ""
	for _, r := range done.Sorted() {
		if r.Err != nil && r.Topic != last {
			last = r.Topic
			err = errors.Join(err, fmt.Errorf("delete records of %s/%d: %w", r.Topic, r.Partition, r.Err))
		}
	}
	return err
}

// Committed is the group's committed offsets; none of one that does not exist.
func (a *Admin) Committed(ctx context.Context, group string) (map[string]map[int32]int64, error) {
	var resp kadm.OffsetResponses
	err := askCoordinator(ctx, func() (err error) {
		resp, err = a.adm.FetchOffsets(ctx, group)
		return err
	})
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("fetch offsets of group %s: %w", group, err)
	}
	offsets := map[string]map[int32]int64{}
	resp.Each(func(o kadm.OffsetResponse) {
		if o.Err == nil {
			if offsets[o.Topic] == nil {
				offsets[o.Topic] = map[int32]int64{}
			}
			offsets[o.Topic][o.Partition] = o.At
		}
	})
	return offsets, nil
}

// A group's coordinator is waited for so long, and asked so often. A broker that has never had a group makes the topic of groups for the
// first that is asked for, and one that has started reads it; the client takes what brokers say meanwhile for an answer.
const (
	coordinatorWait  = 15 * time.Second
	coordinatorPause = 100 * time.Millisecond
)

// askCoordinator asks again as long as the answer is that there is no coordinator at the moment.
func askCoordinator(ctx context.Context, ask func() error) error {
	for began := time.Now(); ; {
		err := ask()
		later := errors.Is(err, kerr.CoordinatorNotAvailable) || errors.Is(err, kerr.CoordinatorLoadInProgress) || errors.Is(err, kerr.NotCoordinator)
		if !later || time.Since(began) > coordinatorWait || !sleep(ctx, coordinatorPause) {
			return err
		}
	}
}
