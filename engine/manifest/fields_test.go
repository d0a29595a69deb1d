package manifest

import (
	"slices"
	"testing"
)

// A member without a description is one that nobody finds; a description without a member promises what there is not.
func TestFields(t *testing.T) {
	members := map[string]bool{}
	for _, root := range sketches() {
		root.Walk(func(n *Node) {
			for _, m := range n.Members {
				if m.Instead == "" {
					members[m.Value.Key] = true
					// A shared value is described where it stands, too.
					members[n.Key+"."+m.Name] = true
				}
			}
		})
	}
	all, order := parseFields(fieldsText)
	for key := range members {
		if f, ok := all[key]; !ok && !shared(key) || ok && f.Doc == "" {
			t.Errorf("fields.txt does not say what %s is for", key)
		}
	}
	for _, key := range order {
		if !members[key] {
			t.Errorf("fields.txt describes %s, which no reader knows", key)
		}
	}
}

// shared tells whether a key is the name of a shared value itself, which has no line of its own.
func shared(key string) bool { return !slices.Contains([]byte(key), '.') }

func sketches() []*Node {
	var list []*Node
	for _, kind := range Kinds() {
		list = append(list, Describe(kind))
	}
	return append(list, DescribeDefinitions())
}

// A mark belongs to everything below its member, and to nothing else.
func TestFieldMarks(t *testing.T) {
	all, _ := parseFields("[A.spec.p, E.p]\nq: Q.\n[A]\nspec: S.\n[A.spec] refused: not yet\nx: X.\ny: Y. | done\ny.z: Z.\nl: L. | no effect: never\nl[].m: M.\n[B, C]\nx: X.\n")
	for key, want := range map[string]Status{"A.spec.x": Refused, "A.spec.y": Done, "A.spec.y.z": Done, "A.spec.l": NoneDone, "A.spec.l[].m": NoneDone, "B.x": Done, "C.x": Done, "A.spec": Done, "A.spec.p.q": Refused, "E.p.q": Done} {
		if got := all[key]; got.Status != want || (want == Refused) != (got.Why == "not yet") {
			t.Errorf("%s: %+v, want %s", key, got, want)
		}
	}
}
