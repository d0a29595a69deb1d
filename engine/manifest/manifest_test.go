package manifest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected text in testdata")

// Whoever writes a manifest sees these messages: testdata/NAME.yaml gives testdata/NAME.golden, problems first. For a
// file named ok-*, everything read follows, with its place.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Base(file)
			set, problems := Parse(name, content)
			got := strings.Builder{}
			for _, p := range problems {
				fmt.Fprintln(&got, p)
			}
			if strings.HasPrefix(name, "ok-") {
				if problems.Fatal() {
					t.Errorf("%s must be accepted:\n%v", name, problems)
				}
				fmt.Fprintln(&got, "----")
				dump(&got, "", reflect.ValueOf(*set))
			}
			compare(t, strings.TrimSuffix(file, ".yaml")+".golden", got.String())
		})
	}
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -rewrite writes it anew)\n--- got\n%s--- want\n%s", file, got, want)
	}
}

// dump prints what was set, one value a line.
func dump(out *strings.Builder, path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			dump(out, path, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			dump(out, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	case reflect.Struct:
		if pos := v.FieldByName("Pos"); pos.IsValid() && v.NumField() == 2 && v.Type().Field(0).Name == "V" {
			if at := pos.Interface().(Pos); at != (Pos{}) {
				fmt.Fprintf(out, "%s = %#v @%d:%d\n", strings.TrimPrefix(path, "."), v.Field(0).Interface(), at.Line, at.Column)
			}
			return
		}
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if !field.IsExported() {
				continue
			}
			name := path + "." + field.Name
			if field.Anonymous {
				name = path
			}
			if at, ok := v.Field(i).Interface().(Pos); ok {
				if at != (Pos{}) {
					fmt.Fprintf(out, "%s @%d:%d\n", strings.TrimPrefix(name, "."), at.Line, at.Column)
				}
				continue
			}
			dump(out, name, v.Field(i))
		}
	case reflect.Map:
		if v.Len() > 0 {
			fmt.Fprintf(out, "%s = %v\n", strings.TrimPrefix(path, "."), v.Interface())
		}
	default:
		if !v.IsZero() {
			fmt.Fprintf(out, "%s = %#v\n", strings.TrimPrefix(path, "."), v.Interface())
		}
	}
}
