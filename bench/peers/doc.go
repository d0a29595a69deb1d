// Package peers measures Kaspr side by side with other stream processors: the same records, the same broker, one after the other in
// one run, several times over. `make bench-peers` runs it and prints the table.
//
// A run starts a system on a backlog, in a group and with an output topic of its own, and waits until readers of committed records
// see all of the output, which is then checked record by record. Throughput is records over the time between the first
// and the last output's LogAppendTime, so that start-up does not count; processor time is that of the system's whole process group
// in the same window. The broker shares the machine with every system alike.
//
// TestLatency is the same systems at a steady pace, TestGrowth Kaspr alone with one thing larger at a time (make bench-growth), TestFlame
// Kaspr under perf (make flame). -variants runs Kaspr with other environment variables, or another build of it, beside itself.
//
// Each row is in the results file as soon as it is measured. However the run ends, all processes that it started end with it.
//
// Systems come from the package registries at the versions pinned in workers/*.requirements.txt and kstreams/pom.xml.
package peers
