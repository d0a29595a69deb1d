package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/scheduler"
)

// steerTimeout bounds one request to the scheduler from outside.
const steerTimeout = 30 * time.Second

// clientOf reaches the Kafka of an app that does not run here, for a purpose that its client id names. Close the Admin.
func clientOf(cfg config.Config, p *plan.Plan, log *slog.Logger, purpose string) (broker.Options, *broker.Admin, error) {
	opts, err := (&App{cfg: cfg, plan: p, log: log}).brokerOptions()
	if err != nil {
		return opts, nil, err
	}
	opts.ClientID += "-" + purpose
	admin, err := broker.NewAdmin(opts)
	return opts, admin, err
}

// Steer writes one request to the scheduler of an app, as any client may, into the partition of its id. It says where the request is; what
// becomes of it is told in the rejections, or the results.
func Steer(ctx context.Context, cfg config.Config, p *plan.Plan, log *slog.Logger, verb scheduler.Verb, id string, key, value []byte, headers []record.Header) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, steerTimeout)
	defer cancel()
	opts, admin, err := clientOf(cfg, p, log, "schedule")
	if err != nil {
		return "", err
	}
	defer admin.Close()
	topics, err := admin.Topics(ctx)
	if err != nil {
		return "", err
	}
	topic := plan.ScheduleTopic(p.App.ID, "requests")
	n := topics[topic]
	if n == 0 {
		return "", errors.New("topic " + topic + " does not exist: the app has not run with schedulerEnabled yet")
	}
	producer, err := broker.NewProducer(opts, "")
	if err != nil {
		return "", err
	}
	defer producer.Close()
	out := record.Output{Topic: topic, Partition: record.PartitionOf([]byte(id), n), Key: key, Value: value}
	out.Headers = append(append(out.Headers, headers...),
		record.Header{Key: scheduler.HeaderAction, Value: []byte(verb)}, record.Header{Key: scheduler.HeaderID, Value: []byte(id)})
	d, _, err := producer.SendSync(ctx, out)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s/%d@%d", d.Topic, d.Partition, d.Offset), nil
}
