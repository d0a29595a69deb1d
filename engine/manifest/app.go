package manifest

// App is a KasprApp. Members that concern only Kubernetes are checked for their shape and not kept.
type App struct {
	Meta
	Version          Value[string]
	Image            Value[string]
	Replicas         Value[int]
	BootstrapServers Value[string]
	TLS              Value[bool] // V is true when the member is there, also as {}
	Authentication   *Authentication
	Config           []Setting // spec.config in file order; names and values are checked by engine/config
	Packages         []Value[string]
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

// Setting is one member of spec.config.
type Setting struct {
	Name  Value[string]
	Value Value[string] // the scalar's text
}

// EnvVar is one variable of the worker container. From is set instead of Value when it comes from elsewhere.
type EnvVar struct {
	Name  Value[string]
	Value Value[string]
	From  Value[string] // secretKeyRef, configMapKeyRef or fieldRef
}

// Storage is the disk of a worker.
type Storage struct {
	Pos         Pos
	Type        Value[string] // ephemeral, persistent-claim
	Class       Value[string]
	Size        Value[string]
	DeleteClaim Value[bool]
}
