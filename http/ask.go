package http

import (
	"crypto/tls"
	"fmt"
	"time"

	"github.com/valyala/fasthttp"
)

// Ask gets a path of a server of this package: the answer's code and body. With a trust it is asked over HTTPS.
func Ask(addr, path string, within time.Duration, trust *tls.Config) (int, []byte, error) {
	return AskAs("", addr, path, within, trust)
}

// AskAs is Ask with a bearer token; empty: none.
func AskAs(token, addr, path string, within time.Duration, trust *tls.Config) (int, []byte, error) {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	scheme := "http://"
	if trust != nil {
		scheme = "https://"
	}
	req.SetRequestURI(scheme + addr + path)
	req.SetConnectionClose()
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := fasthttp.Client{TLSConfig: trust}
	if err := client.DoTimeout(req, resp, within); err != nil {
		return 0, nil, fmt.Errorf("ask %s%s: %w", addr, path, err)
	}
	return resp.StatusCode(), append([]byte(nil), resp.Body()...), nil
}
