package forward

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestARequestThatIsTooLongForTheRoutesIsRefused(t *testing.T) {
	var sites []site
	for i := range 300 {
		s := to("/", closedPort(t))
		s.route.Path, s.route.Match, s.route.StripPath = fmt.Sprintf("/x%d$", i), resourcev1.PathMatch_PATH_MATCH_REGEX, false
		sites = append(sites, s)
	}
	p := start(t, sites...)
	w := connect(t, p)
	w.say("GET /" + strings.Repeat("a", 30<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n")
	if r, body, err := w.answer(http.MethodGet); err != nil || r.StatusCode != http.StatusRequestHeaderFieldsTooLarge ||
		!strings.HasPrefix(body, "The request is too long to be compared with the routes here.") {
		t.Errorf("%d, %q, %v", r.StatusCode, body, err)
	}
	w.say(ask("/a"))
	if r, body, err := w.answer(http.MethodGet); err != nil || r.StatusCode != http.StatusNotFound {
		t.Errorf("%d, %q, %v", r.StatusCode, body, err)
	}
}
