package state

// Staged lies over a store: changes of records that were processed and are not committed yet. Reads see staged over stored.
//
// There are two generations: what is being committed (frozen) and what came since. So processing goes on while a
// transaction commits:
//
//	staged.Stage(changes)              // any number of times
//	set := staged.Freeze()             // send set.Changes to the changelog, in the transaction
//	staged.Stage(more)                 // the next generation
//	err := staged.Commit(set, next)    // the transaction is committed: changes go to the store
//	staged.Abort()                     // or it is not: nothing was ever staged
//
// Invariant: what a read sees is the store with the frozen generation and then the next one applied to it.
// The owner of the store owns its Staged; only Commit may run on another goroutine, while the owner stages and reads.
type Staged struct{}

// ChangeSet is a frozen generation: one change for each key, in the order the keys were first written.
type ChangeSet struct {
	Changes []Change
	Bytes   int64
}
