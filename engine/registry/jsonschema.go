package registry

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"kaspr.io/kaspr/wasmhost/abi"
)

// jsonCodec passes JSON text on, and holds it against its schema if that is wanted.
type jsonCodec struct {
	schema *jsonschema.Schema // nil: nothing is checked
	limit  *stepLimit
}

// newJSONSchema compiles a schema. Its name is its title.
func newJSONSchema(s schemaText, validate bool) (codec, string, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(s.text))
	if err != nil {
		return nil, "", err
	}
	title := ""
	if m, ok := doc.(map[string]any); ok {
		title, _ = m["title"].(string)
	}
	if !validate {
		return jsonCodec{}, title, nil
	}
	limit := &stepLimit{}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	c.UseLoader(references(s.references)) // nothing is fetched from anywhere, whatever $ref says
	c.RegisterVocabulary(&jsonschema.Vocabulary{
		URL: "kaspr:steps",
		Compile: func(*jsonschema.CompilerContext, map[string]any) (jsonschema.SchemaExt, error) {
			if limit.schemas++; limit.schemas > schemaTypesMax {
				return nil, errors.New("the schema is too large")
			}
			return limit, nil
		},
	})
	c.AssertVocabs()
	const at = "kaspr:///schema.json"
	if err := c.AddResource(at, doc); err != nil {
		return nil, "", err
	}
	compiled, err := c.Compile(at)
	if err != nil {
		return nil, "", err
	}
	return jsonCodec{compiled, limit}, title, nil
}

// references loads the schemas that the registry names for a schema, and nothing else.
type references []reference

func (refs references) Load(url string) (any, error) {
	name := strings.TrimPrefix(url, "kaspr:///")
	for _, r := range refs {
		if r.name == name || r.name == url {
			return jsonschema.UnmarshalJSON(strings.NewReader(r.text))
		}
	}
	return nil, fmt.Errorf("%s is none of the schema's references in the registry", name)
}

// stepLimit ends a validation that takes too long: a few nested references in a schema can ask for more steps than there are
// atoms. It is called for every schema that is held against a value.
type stepLimit struct {
	schemas int

	mu    sync.Mutex // held during a validation
	steps int        // guarded by mu
	until time.Time  // guarded by mu
}

const (
	stepsMax     = 1_000_000
	validateTime = 2 * time.Second
)

// errSteps is panicked with: a validation has no other way out.
var errSteps = errors.New("it takes too long to hold the value against its schema")

func (l *stepLimit) Validate(*jsonschema.ValidatorContext, any) {
	if l.steps++; l.steps > stepsMax || l.steps%256 == 0 && time.Now().After(l.until) {
		panic(errSteps)
	}
}

func (c jsonCodec) check(text []byte) (err error) {
	if c.schema == nil {
		return nil
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	c.limit.steps, c.limit.until = 0, time.Now().Add(validateTime)
	defer func() {
		if p := recover(); p != nil {
			if p != any(errSteps) {
				panic(p)
			}
			err = errSteps
		}
	}()
	err = c.schema.Validate(v)
	var invalid *jsonschema.ValidationError
	if errors.As(err, &invalid) {
		return errors.New(reasons(invalid))
	}
	return err
}

// reasons is a validation error without the schema's address, its lines on one.
func reasons(err *jsonschema.ValidationError) string {
	text := err.Error()
	if _, rest, ok := strings.Cut(text, "\n"); ok {
		text = rest
	}
	text = longQuoted.ReplaceAllStringFunc(strings.Join(strings.Fields(text), " "), func(quoted string) string {
		return strings.ToValidUTF8(quoted[:60], "") + "…'" // the value itself; what is wrong with it stands behind
	})
	text = strings.ToValidUTF8(text[:min(len(text), 1000)], "")
	return "not what the schema wants: " + strings.TrimPrefix(text, "- ")
}

var longQuoted = regexp.MustCompile(`'[^']{100,}'`)

func (c jsonCodec) decode(dst, data []byte) ([]byte, error) {
	if len(data) > formBytesMax {
		return nil, errTooLarge
	}
	if err := c.check(data); err != nil {
		return nil, err
	}
	return abi.AppendFormBytes(dst, abi.FormJSON, data), nil
}

func (c jsonCodec) encode(dst []byte, v *abi.Value) ([]byte, error) {
	if v.Kind != abi.FormJSON {
		return nil, errors.New("JSON is wanted")
	}
	if err := c.check(v.Bytes); err != nil {
		return nil, err
	}
	return append(dst, v.Bytes...), nil
}
