package plan

import (
	"testing"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
)

func schedulePlan(t *testing.T, text string, change func(*config.Config)) (*Plan, config.Config, manifest.Errors) {
	t.Helper()
	set, problems := manifest.Parse("app.yaml", []byte(text))
	if problems.Fatal() {
		t.Fatal(problems)
	}
	cfg := config.Default()
	cfg.Scheduler.Enabled = true
	change(&cfg)
	p, problems := New(set, cfg)
	return p, cfg, problems
}

const scheduleApp = "apiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: a}\nspec: {}\n"

// The scheduler's topics keep the partitions they were made with: messages that wait are where their ids hash to.
func TestSchedulePartitions(t *testing.T) {
	p, cfg, problems := schedulePlan(t, scheduleApp, func(c *config.Config) { c.Scheduler.TopicPartitions, c.Topics.Partitions = 5, 2 })
	if len(problems) > 0 || len(p.Agents) != 2 {
		t.Fatal(p, problems)
	}
	for _, c := range []struct {
		exist                                    map[string]int32
		table, requests, actions, rejections, no int32
	}{
		{map[string]int32{}, 5, 5, 5, 2, 0},
		{map[string]int32{"a-app-schedule-requests": 3}, 3, 3, 3, 2, 0},
		{map[string]int32{"a-app-schedule-requests": 3, "a-app-schedule-actions": 4}, 4, 3, 4, 2, 0},
		{map[string]int32{"a-app-schedule-actions": 4, "a-app-schedule-changelog": 6}, 6, 5, 4, 2, 1},
	} {
		tables, own, problems := p.Partitions(cfg, c.exist)
		if tables[0] != c.table || own[0] != c.requests || own[1] != c.actions || own[2] != c.rejections || len(problems) != int(c.no) {
			t.Errorf("%v: table %v, own %v, problems %v; want %+v", c.exist, tables, own, problems, c)
		}
	}
}

// A user's table in the place of the scheduler's would mix their rows.
func TestScheduleTableName(t *testing.T) {
	text := scheduleApp + "---\napiVersion: kaspr.io/v1alpha1\nkind: KasprTable\nmetadata: {name: schedule, labels: {kaspr.io/app: a}}\nspec: {name: schedule}\n"
	if _, _, problems := schedulePlan(t, text, func(*config.Config) {}); !problems.Fatal() {
		t.Error("accepted")
	}
	if _, _, problems := schedulePlan(t, text, func(c *config.Config) { c.Scheduler.Enabled = false }); problems.Fatal() {
		t.Error("without the scheduler:", problems)
	}
}
