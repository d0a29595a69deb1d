package plan

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"

	"kaspr.io/kaspr/engine/config"
)

// What follows is the part of OpenAPI 3.0 that says something of web views. Maps are written in the order of their keys, so the same views are
// always the same text.

type openAPI struct {
	OpenAPI string `json:"openapi"`
	Info    struct {
		Title       string `json:"title"`
		Description string `json:"description,omitempty"`
		Version     string `json:"version"`
	} `json:"info"`
	Paths      map[string]map[string]*apiOperation `json:"paths"` // by path and method
	Components *apiComponents                      `json:"components,omitempty"`
	Security   []map[string][]string               `json:"security,omitempty"`
}

type apiComponents struct {
	SecuritySchemes map[string]apiSecurity `json:"securitySchemes"`
}

type apiSecurity struct {
	Type   string `json:"type"`
	Scheme string `json:"scheme"`
}

type apiOperation struct {
	ID          string                 `json:"operationId"`
	Description string                 `json:"description,omitempty"`
	Parameters  []apiParameter         `json:"parameters,omitempty"`
	RequestBody *apiContent            `json:"requestBody,omitempty"`
	Responses   map[string]*apiContent `json:"responses"`
	// Also are views whose paths differ from this one's only in what their parameters match, which OpenAPI cannot say.
	Also []apiAlso `json:"x-kaspr-also,omitempty"`
}

type apiParameter struct {
	Name     string    `json:"name"`
	In       string    `json:"in"`
	Required bool      `json:"required"`
	Schema   apiSchema `json:"schema"`
}

type apiContent struct {
	Description string              `json:"description"`
	Content     map[string]apiMedia `json:"content,omitempty"`
}

type apiMedia struct {
	Schema apiSchema `json:"schema"`
}

type apiSchema struct {
	Type       string               `json:"type,omitempty"`
	Format     string               `json:"format,omitempty"`
	Pattern    string               `json:"pattern,omitempty"`
	Properties map[string]apiSchema `json:"properties,omitempty"`
}

type apiAlso struct {
	View string `json:"view"`
	Path string `json:"path"`
}

var apiParam = regexp.MustCompile(`\{\w+\}`)

// OpenAPI describes the web views as an OpenAPI document. What code answers beside what its manifest says is not known, so every
// operation has a default response.
func (p *Plan) OpenAPI(cfg config.Config, version string) []byte {
	doc := openAPI{OpenAPI: "3.0.3", Paths: map[string]map[string]*apiOperation{}}
	doc.Info.Title, doc.Info.Version = p.App.ID, version
	if version == "" {
		doc.Info.Version = "unknown"
	}
	if cfg.Web.TLS.ClientCAFile != "" {
		doc.Info.Description = "Requests must come with a client certificate."
	}
	if cfg.Web.Token != "" {
		doc.Components = &apiComponents{map[string]apiSecurity{"token": {"http", "bearer"}}}
		doc.Security = []map[string][]string{{"token": {}}}
	}
	base := BasePath(cfg.Web.BasePath)
	first := map[string]string{} // the path in the document of those that differ only in their parameters
	for i := range p.Views {
		v := &p.Views[i]
		path := base + v.Route.Template
		hierarchy := apiParam.ReplaceAllString(path, "{}")
		if first[hierarchy] == "" {
			first[hierarchy] = path
			doc.Paths[path] = map[string]*apiOperation{}
		}
		path = first[hierarchy]
		method := strings.ToLower(v.Method)
		if there := doc.Paths[path][method]; there != nil {
			there.Also = append(there.Also, apiAlso{v.Name, v.Path})
			continue
		}
		doc.Paths[path][method] = v.openAPI(apiParam.FindAllString(path[len(base):], -1))
	}
	text, err := json.Marshal(doc)
	if err != nil {
		panic("BUG: " + err.Error()) // our own values
	}
	return append(text, '\n')
}

// openAPI is the operation of a view whose parameters are named in braces.
func (v *View) openAPI(params []string) *apiOperation {
	o := &apiOperation{ID: v.Name, Description: v.About, Responses: map[string]*apiContent{}}
	for i, name := range params {
		schema := apiSchema{Type: "string"}
		if pattern := v.Route.Patterns[i]; pattern != "" {
			schema.Pattern = "^(?:" + pattern + ")$"
		}
		o.Parameters = append(o.Parameters, apiParameter{strings.Trim(name, "{}"), "path", true, schema})
	}
	switch v.Method {
	case "POST", "PUT", "PATCH":
		o.RequestBody = &apiContent{"What the code makes of it is not known.", map[string]apiMedia{"*/*": {}}}
	}
	view := v.Program.View
	body := func(description string, schema apiSchema) *apiContent {
		r := &apiContent{Description: description}
		if v.Method == "HEAD" {
			return r
		}
		switch view.ContentType {
		case "application/json":
		case "application/octet-stream":
			schema = apiSchema{Type: "string", Format: "binary"}
		default:
			schema = apiSchema{Type: "string"}
		}
		r.Content = map[string]apiMedia{view.ContentType: {schema}}
		return r
	}
	if view.StatusSelector.OnSuccess == nil {
		status := view.Status
		if status == 0 {
			status = 200
		}
		r := body("Success.", apiSchema{})
		if status < 200 || status == 204 || status == 304 {
			r.Content = nil
		}
		o.Responses[strconv.Itoa(status)] = r
	}
	failed := apiSchema{}
	if view.BodySelector.OnError == nil {
		failed = apiSchema{Type: "object", Properties: map[string]apiSchema{"operation": {Type: "string"}, "cause": {Type: "string"}}}
	}
	if _, taken := o.Responses["500"]; !taken && view.StatusSelector.OnError == nil {
		o.Responses["500"] = body("The code failed.", failed)
	}
	o.Responses["503"] = &apiContent{"There is no room, or a table cannot be read now; try again after Retry-After.", map[string]apiMedia{"application/json": {apiSchema{Type: "object"}}}}
	o.Responses["default"] = body("What the code chooses to answer.", apiSchema{})
	return o
}
