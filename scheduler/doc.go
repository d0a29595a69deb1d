// Package scheduler decides what becomes of messages that are to be delivered later.
//
// It is a set of functions of values: state comes through a [Reader], the time is an argument, and what is to happen is the
// answer, a [Step]. Whoever calls them (the host) makes each Step part of a transaction: its outputs are sent, its changes
// are laid over the table, and with both the position in the input moves, or nothing of it ever was. The package knows
// neither Kafka nor Python, starts no goroutine and reads no clock.
//
//	requests ── Distribute ──► actions ── Intake ──► table ── Dispatch ──► destinations
//	                │                        │          │         │
//	                └────── rejections ◄─────┴──────────│─────────┘
//	                                                  Clean
//
// Distribute checks a request and sends it to the partition that its request id belongs to, so that all requests about one id
// are handled in one place, one after the other. Where a host has the partition of the table beside that of the requests, Receive
// does so, and takes in what is in its place already. Intake, Dispatch, Refused and Clean work on one partition of the table,
// and belong to its one owner.
//
// # The table
//
// Keys are ordered bytewise; the first byte is the space. Times are milliseconds since the Unix epoch, as 8 bytes, big
// endian, with the sign bit flipped, so that byte order is the order of times.
//
//	'h'                    -> head: next sequence number, a bound below which no message lies, how many there are
//	'm' time sequence      -> a message, or a cron's next firing; in the order in which they leave
//	'i' request id         -> where its message lies (pending), or what became of it (sent, cancelled, failed)
//	'c' cron id            -> a cron entry, or that it was cancelled
//	'x' time sequence      -> ids whose rows may be forgotten from that time on
//	's' source partition   -> how far the requests of that partition were taken in; only without transactions
//
// A message costs one row, and one more if it has an id; nothing is counted by second, and nothing is looked for second by
// second. Every value begins with the version of its format.
//
// # Invariants
//
//   - A message row exists from the moment its request is accepted until the step that delivers, cancels, replaces or
//     rejects it.
//   - No message row lies below the head's Low.
//   - A pending id row names the one message row with its id, and the other way round.
//   - An active cron has exactly one message row, its next firing.
//   - Nothing is delivered at a time before it is due, by the clock of whoever dispatches it.
package scheduler
