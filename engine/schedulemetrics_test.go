package engine

import (
	"reflect"
	"testing"

	"kaspr.io/kaspr/scheduler"
)

// What the process did in a partition it has lost must stay counted, or every handover looks like a restart; and no count may be left out.
func TestScheduleSeries(t *testing.T) {
	s := &schedule{parts: map[int32]*schedulePart{}}
	for n := range int32(2) {
		v := reflect.ValueOf(&s.part(n).counts).Elem()
		for i := range v.NumField() {
			v.Field(i).SetInt(int64(i + 1))
		}
	}
	sum := s.done()
	v := reflect.ValueOf(sum)
	for i := range v.NumField() {
		if got, want := v.Field(i).Int(), int64(2*(i+1)); got != want {
			t.Errorf("%s: %d, want %d", v.Type().Field(i).Name, got, want)
		}
	}
	names := map[string]bool{}
	for i := range scheduler.AllSeries {
		names[scheduler.AllSeries[i].Name] = true
	}
	for _, name := range []string{
		"kms_last_location_time", "kms_last_location_seq", "kms_last_location_lag", "kms_timetable_size", "kms_messages_scheduled_total",
		"kms_messages_delivered_total", "kms_messages_removed_total", "kms_messages_delivered_instant_total", "kms_messages_replaced_total",
		"kms_messages_replace_noop_total", "kms_messages_canceled_total", "kms_cron_registered_total", "kms_cron_canceled_total",
		"kms_cron_paused_total", "kms_cron_resumed_total", "kms_cron_fires_materialized_total", "kms_cron_fires_missed_total",
		"kms_cron_fires_skipped_total", "kms_cron_registry_size",
	} {
		if !names[name] {
			t.Errorf("no %s of the original", name)
		}
	}
}
