package manifest

import (
	"math"
	"regexp"

	"go.yaml.in/yaml/v3"
)

// App is a KasprApp. Members that concern only Kubernetes are checked for their names and not kept.
type App struct {
	Meta
	Version          Value[string]
	Image            Value[string]
	Replicas         Value[int]
	BootstrapServers Value[string]
	TLS              Value[bool] // V is true when the member is there, also as {}
	Authentication   *Authentication
	Config           []Setting // spec.config in file order; names and values are checked by engine/config
	Liveness         *Probe
	Readiness        *Probe
	Packages         *Packages
	Env              []EnvVar // template.kasprContainer.env
	Storage          *Storage
	OnError          *OnError // default of the app's agents
}

// Authentication is how the app logs in to Kafka.
type Authentication struct {
	Pos         Pos
	Type        Value[string] // plain, scram-sha-256, scram-sha-512
	Username    Value[string]
	SecretName  Value[string]
	PasswordKey Value[string]
}

// Setting is one member of spec.config, or of a settings file.
type Setting struct {
	Name  Value[string]
	Value Value[string] // the scalar's text; a list's items are joined by commas
}

// EnvVar is one variable of the worker container. From is set instead of Value when it comes from elsewhere.
type EnvVar struct {
	Name  Value[string]
	Value Value[string]
	From  Value[string] // secretKeyRef, configMapKeyRef or fieldRef
}

// Probe is how Kubernetes looks after a worker. Times are seconds.
type Probe struct {
	Pos              Pos
	InitialDelay     Value[int]
	Period           Value[int]
	Timeout          Value[int]
	FailureThreshold Value[int]
	SuccessThreshold Value[int]
}

// Storage is the disk of a worker.
type Storage struct {
	Pos         Pos
	Type        Value[string] // ephemeral, persistent-claim
	Class       Value[string]
	Size        Value[string]
	DeleteClaim Value[bool]
}

func (c cursor) app(a *App) {
	c.object(
		may("version", func(c cursor) { c.named(&a.Version) }),
		may("image", func(c cursor) { c.named(&a.Image) }),
		may("replicas", func(c cursor) { whole(c, &a.Replicas, 0, math.MaxInt32) }),
		may("bootstrapServers", func(c cursor) { c.named(&a.BootstrapServers) }),
		may("tls", func(c cursor) {
			// No members: its being there is the setting. A worker sees no Secrets, only files that are mounted for it.
			if c.object(refused("trustedCertificates", "mount the certificates and name their PEM file in the setting kafkaTlsCaFile")) != nil {
				a.TLS = At(true, c.at)
			}
		}),
		may("authentication", func(c cursor) { c.authentication(&a.Authentication) }),
		may("config", func(c cursor) {
			if c.sketching {
				c.sketch.Types, c.sketch.Values = []string{"object"}, &Node{} // engine/config knows more
				return
			}
			if c.node.Kind != yaml.MappingNode {
				c.fail(WrongType, c.name()+" must be a mapping, not "+c.kind(), "")
				return
			}
			c.settings(&a.Config)
		}),
		may("resources", func(c cursor) { c.object(ignored("requests", "limits", "claims")...) }),
		may("livenessProbe", func(c cursor) { c.probe(&a.Liveness) }),
		may("readinessProbe", func(c cursor) { c.probe(&a.Readiness) }),
		may("storage", func(c cursor) { c.storage(&a.Storage) }),
		may("pythonPackages", func(c cursor) { c.packages(&a.Packages) }),
		may("template", func(c cursor) { c.template(a) }),
		may("onError", func(c cursor) { c.onError(&a.OnError) }),
	)
}

func (c cursor) authentication(dst **Authentication) {
	auth := &Authentication{Pos: c.at}
	if c.object(
		must("type", func(c cursor) { c.word(&auth.Type, "plain", "scram-sha-256", "scram-sha-512") }),
		may("username", func(c cursor) { c.named(&auth.Username) }),
		may("passwordSecret", func(c cursor) {
			c.object(
				must("secretName", func(c cursor) { c.named(&auth.SecretName) }),
				must("passwordKey", func(c cursor) { c.named(&auth.PasswordKey) }),
			)
		}),
	) != nil {
		*dst = auth
	}
}

func (c cursor) probe(dst **Probe) {
	p := &Probe{Pos: c.at}
	if c.object(
		may("initialDelaySeconds", func(c cursor) { whole(c, &p.InitialDelay, 0, math.MaxInt32) }),
		may("periodSeconds", func(c cursor) { whole(c, &p.Period, 1, math.MaxInt32) }),
		may("timeoutSeconds", func(c cursor) { whole(c, &p.Timeout, 1, math.MaxInt32) }),
		may("failureThreshold", func(c cursor) { whole(c, &p.FailureThreshold, 1, math.MaxInt32) }),
		may("successThreshold", func(c cursor) { whole(c, &p.SuccessThreshold, 1, math.MaxInt32) }),
	) != nil {
		*dst = p
	}
}

func (c cursor) storage(dst **Storage) {
	s := &Storage{Pos: c.at}
	if c.object(
		may("type", func(c cursor) { c.word(&s.Type, "ephemeral", "persistent-claim") }),
		may("class", func(c cursor) { c.named(&s.Class) }),
		may("size", func(c cursor) { c.quantity(&s.Size) }),
		may("deleteClaim", func(c cursor) { c.boolean(&s.DeleteClaim) }),
	) != nil {
		*dst = s
	}
}

var variableName = regexp.MustCompile(`^[A-Za-z_.-][A-Za-z0-9_.-]*$`)

func (c cursor) template(a *App) {
	metadata := may("metadata", func(c cursor) { c.object(ignored("labels", "annotations")...) })
	c.object(
		may("serviceAccount", func(c cursor) { c.object(metadata) }),
		may("service", func(c cursor) { c.object(metadata) }),
		may("pod", func(c cursor) {
			c.object(append(ignored("imagePullSecrets", "securityContext", "terminationGracePeriodSeconds", "nodeSelector", "affinity",
				"tolerations", "topologySpreadConstraints", "priorityClassName", "schedulerName", "hostAliases", "enableServiceLinks",
				"volumes"), metadata)...)
		}),
		may("kasprContainer", func(c cursor) {
			c.object(append(ignored("volumeMounts", "securityContext"),
				may("env", func(c cursor) { c.list(func(c cursor) { c.envVar(&a.Env) }) }))...)
		}),
		may("pythonPackagesInitContainer", func(c cursor) { c.object(ignored("env", "volumeMounts", "securityContext")...) }),
	)
}

func (c cursor) envVar(dst *[]EnvVar) {
	var v EnvVar
	there := c.object(
		must("name", func(c cursor) {
			if c.named(&v.Name); v.Name.Set() && !variableName.MatchString(v.Name.V) {
				c.fail(BadName, c.name()+" "+quote(v.Name.V)+" is not the name of an environment variable", "")
			}
		}),
		may("value", func(c cursor) { c.text(&v.Value) }),
		may("valueFrom", func(c cursor) {
			from := c.object(ignored("secretKeyRef", "configMapKeyRef", "fieldRef")...)
			for _, ref := range []string{"secretKeyRef", "configMapKeyRef", "fieldRef"} {
				if from[ref] {
					v.From = At(ref, c.at)
				}
			}
			if from != nil {
				c.exactlyOne(from, "secretKeyRef", "configMapKeyRef", "fieldRef")
			}
		}),
	)
	if there == nil {
		return
	}
	c.atMostOne(there, "value", "valueFrom") // with neither the variable is empty, as in Kubernetes
	*dst = append(*dst, v)
}
