package forward

import (
	"bytes"
	"errors"
	"net/http"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/route"
)

var errRewritten = errors.New("the path that would be forwarded is not in normal form")

// rewritePath makes the path that is forwarded where the route gives another than was matched. Each part of it is in normal
// form, but a group can be half of a percent-encoding, or the dots of a segment that were harmless where they stood
// ("/a../b") and climb where they come to stand. What is not in normal form any more is refused rather than mended: the
// backend would have to be sent something that nobody has written.
func (x *exchange) rewritePath() *failure {
	made := x.appendTemplate(x.rewritten[:0], x.route.forwardPath)
	if len(made) > http1.MaxTarget {
		return refused(http.StatusRequestURITooLong, "The path of the request is too long for what is made of it.", nil)
	}
	x.rewritten = made
	path, err := route.NormalizePath(nil, made)
	if err == nil && !bytes.Equal(path, made) {
		err = errRewritten
	}
	if err != nil {
		return refused(http.StatusBadRequest, "The path of the request is not valid.", err)
	}
	x.target = made
	return nil
}
