package manifest

import (
	"math"
	"regexp"
	"strings"
)

// Packages are the Python packages that Code may import, and how they are installed.
type Packages struct {
	Pos            Pos
	Requirements   []Value[string] // as pip takes them
	IndexURL       Value[string]
	ExtraIndexURLs []Value[string]
	TrustedHosts   []Value[string]
	Credentials    *IndexCredentials
	Cache          *PackageCache
	Retries        Value[int]
	Timeout        Value[int]    // seconds
	OnFailure      Value[string] // block, allow
}

// IndexCredentials is the Secret with the login of a package index.
type IndexCredentials struct {
	Pos         Pos
	SecretName  Value[string]
	UsernameKey Value[string]
	PasswordKey Value[string]
}

// PackageCache is an installation that workers share.
type PackageCache struct {
	Pos          Pos
	Type         Value[string] // pvc, gcs
	Enabled      Value[bool]
	StorageClass Value[string]
	Size         Value[string]
	AccessMode   Value[string]
	DeleteClaim  Value[bool]
	GCS          *PackageBucket
}

// PackageBucket is a cache in Google's object storage.
type PackageBucket struct {
	Pos            Pos
	Bucket         Value[string]
	Prefix         Value[string]
	MaxArchiveSize Value[string]
	SecretName     Value[string]
	SecretKey      Value[string]
}

// timeoutLeast is the shortest time an installation may be given, in seconds.
const timeoutLeast = 60

func (c cursor) packages(dst **Packages) {
	p := &Packages{Pos: c.at}
	if c.object(append(ignored("resources"),
		must("packages", func(c cursor) {
			c.values(&p.Requirements, func(c cursor, v *Value[string]) {
				if c.named(v); strings.ContainsAny(v.V, " \t\r\n") {
					c.fail(BadRequirement, c.name()+" "+quote(v.V)+" has blanks", "one package an item, such as pydantic>=2,<3")
				}
			})
		}),
		may("indexUrl", func(c cursor) { c.url(&p.IndexURL) }),
		may("extraIndexUrls", func(c cursor) { c.values(&p.ExtraIndexURLs, cursor.url) }),
		may("trustedHosts", func(c cursor) { c.values(&p.TrustedHosts, func(c cursor, v *Value[string]) { c.named(v) }) }),
		may("credentials", func(c cursor) {
			cred := &IndexCredentials{Pos: c.at}
			if c.object(must("secretRef", func(c cursor) {
				c.object(
					must("name", func(c cursor) { c.named(&cred.SecretName) }),
					may("usernameKey", func(c cursor) { c.named(&cred.UsernameKey) }),
					may("passwordKey", func(c cursor) { c.named(&cred.PasswordKey) }),
				)
			})) != nil {
				p.Credentials = cred
			}
		}),
		may("cache", func(c cursor) { c.packageCache(&p.Cache) }),
		may("installPolicy", func(c cursor) {
			c.object(
				may("retries", func(c cursor) { whole(c, &p.Retries, 0, math.MaxInt32) }),
				may("timeout", func(c cursor) { whole(c, &p.Timeout, timeoutLeast, math.MaxInt32) }),
				// Older texts call it warn.
				may("onFailure", func(c cursor) { c.oldWord(&p.OnFailure, map[string]string{"warn": "allow"}, "block", "allow") }),
			)
		}),
	)...) != nil {
		*dst = p
	}
}

func (c cursor) packageCache(dst **PackageCache) {
	p := &PackageCache{Pos: c.at}
	if c.object(
		may("type", func(c cursor) { c.word(&p.Type, "pvc", "gcs") }),
		may("enabled", func(c cursor) { c.boolean(&p.Enabled) }),
		may("storageClass", func(c cursor) { c.named(&p.StorageClass) }),
		may("size", func(c cursor) { c.quantity(&p.Size) }),
		may("accessMode", func(c cursor) { c.word(&p.AccessMode, "ReadWriteMany") }),
		may("deleteClaim", func(c cursor) { c.boolean(&p.DeleteClaim) }),
		may("gcs", func(c cursor) {
			b := &PackageBucket{Pos: c.at}
			if c.object(
				must("bucket", func(c cursor) { c.named(&b.Bucket) }),
				may("prefix", func(c cursor) { c.text(&b.Prefix) }),
				may("maxArchiveSize", func(c cursor) { c.quantity(&b.MaxArchiveSize) }),
				may("secretRef", func(c cursor) {
					c.object(
						must("name", func(c cursor) { c.named(&b.SecretName) }),
						may("key", func(c cursor) { c.named(&b.SecretKey) }),
					)
				}),
			) != nil {
				p.GCS = b
			}
		}),
	) != nil {
		*dst = p
	}
}

// values reads a list of texts.
func (c cursor) values(list *[]Value[string], read func(cursor, *Value[string])) {
	c.list(func(c cursor) {
		var v Value[string]
		if read(c, &v); v.Set() {
			*list = append(*list, v)
		}
	})
}

var webURL = regexp.MustCompile(`^https?://.`)

func (c cursor) url(v *Value[string]) {
	if c.named(v) && !webURL.MatchString(v.V) {
		c.fail(BadRequirement, c.name()+" "+quote(v.V)+" is not an http or https URL", "")
	}
}

// quantity reads an amount as Kubernetes writes it; it may be a bare number of bytes.
func (c cursor) quantity(v *Value[string]) {
	if c.sketching {
		c.sketch.Types = []string{"string", "integer", "number"}
		return
	}
	if text, ok := c.scalarText(); ok {
		*v = At(text, c.pos(c.node))
		return
	}
	c.fail(WrongType, c.name()+" must be a quantity, not "+c.kind(), "such as 2Gi")
}
