package wasmhost

import (
	"errors"
	"fmt"
	"strings"

	"kaspr.io/kaspr/wasmhost/abi"
)

// Why a call ended without an answer. A CallError wraps one of these, or the error of the context that was cancelled.
var (
	ErrTrap          = errors.New("the instance trapped")
	ErrDeadline      = errors.New("the unit ran past its deadline")
	ErrMemoryLimit   = errors.New("the instance reached its memory limit")
	ErrStackOverflow = errors.New("the instance's stack overflowed")
	ErrExit          = errors.New("the instance exited")
	ErrProtocol      = errors.New("the guest broke the call protocol") // a bug of ours or a guest of another build
)

// ErrNoSchema is a Host's answer to Encode when the schema is not at hand.
var ErrNoSchema = errors.New("the schema is not at hand yet")

// ErrClosed is returned by everything used after its Close.
var ErrClosed = errors.New("wasmhost: closed")

// CallError says that an instance ended in the middle of a call. The units it had finished are in the Result returned
// beside it; the instance is of no more use.
type CallError struct {
	Err       error  // one of the sentinels, or context.Canceled or context.DeadlineExceeded
	Detail    string // what the WebAssembly runtime said, if more is known than Err
	Unit      int    // unit in progress; -1 when none was
	Phase     int    // abi.Phase*
	Operation int    // index into Program.Ops or Program.Outputs, as Phase says; -1 when it is neither
	Where     string // the same in words, such as: operation "enrich"; empty when unknown
	Traceback string // the user's frames, oldest first; empty when the guest had no time to write them
}

func (e *CallError) Error() string {
	var b strings.Builder
	b.WriteString("call")
	if e.Unit >= 0 {
		fmt.Fprintf(&b, " unit %d", e.Unit)
	}
	if e.Where != "" {
		b.WriteString(" " + e.Where)
	}
	b.WriteString(": " + e.Err.Error())
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	return b.String()
}

func (e *CallError) Unwrap() error { return e.Err }

// LoadError says what is wrong with a program, all of it at once.
type LoadError struct {
	Problems []abi.Problem
}

func (e *LoadError) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		if p.File != "" {
			b.WriteString(p.File)
			if p.Line > 0 {
				fmt.Fprintf(&b, ":%d", p.Line)
			}
			if p.Line > 0 && p.Column > 0 {
				fmt.Fprintf(&b, ":%d", p.Column)
			}
			b.WriteString(": ")
		}
		if p.Where != "" {
			b.WriteString(p.Where + ": ")
		}
		b.WriteString(p.Type)
		if p.Message != "" {
			b.WriteString(": " + p.Message)
		}
	}
	return b.String()
}
