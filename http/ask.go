package http

import (
	"fmt"
	"time"

	"github.com/valyala/fasthttp"
)

// Ask gets a path of a server of this package: the answer's code and body.
func Ask(addr, path string, within time.Duration) (int, []byte, error) {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI("http://" + addr + path)
	req.SetConnectionClose()
	if err := fasthttp.DoTimeout(req, resp, within); err != nil {
		return 0, nil, fmt.Errorf("ask %s%s: %w", addr, path, err)
	}
	return resp.StatusCode(), append([]byte(nil), resp.Body()...), nil
}
