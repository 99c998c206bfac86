package forward

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"strconv"
	"strings"

	"github.com/pyserve/pyserve/node/http1"
)

// The forms that the proxy's own answers come in, the one for clients without a preference first.
var refusalTypes = [...]string{"text/plain", "application/json", "text/html"}

// refuse answers for the proxy itself: one plain sentence and the request's id.
func (x *exchange) refuse(status int, sentence string) error {
	kind := preferred(x.accepted())
	body := refusalBody(kind, status, sentence, string(x.origin.id))
	if kind != "application/json" { // RFC 8259 section 11: JSON has no charset
		kind += "; charset=utf-8"
	}
	return x.peer.reply(status, kind, body)
}

// accepted is the Accept fields as one list.
func (x *exchange) accepted() string {
	if x.salvaged != "" {
		return x.salvaged
	}
	var list []string
	for i := x.request.Find(http1.Accept, 0); i >= 0; i = x.request.Find(http1.Accept, i+1) {
		list = append(list, string(x.request.Value(i)))
	}
	return strings.Join(list, ",")
}

// acceptIn is the same of a head that is none, as far as it was read: all that hangs on it is the form of our answer.
func acceptIn(head []byte) string {
	var list []string
	begun := false // empty lines may stand before a head (RFC 9112 section 2.2)
	for line := range strings.Lines(string(head)) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" && begun {
			break
		}
		begun = begun || line != ""
		if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "Accept") {
			list = append(list, value)
		}
	}
	return strings.Join(list, ",")
}

func refusalBody(kind string, status int, sentence, id string) []byte {
	switch kind {
	case "application/json":
		body, err := json.Marshal(struct {
			Status    int    `json:"status"`
			Error     string `json:"error"`
			RequestID string `json:"request_id"`
		}{status, sentence, id})
		if err != nil {
			panic(fmt.Sprintf("marshal refusal: %v", err)) // strings and a number always marshal
		}
		return append(body, '\n')
	case "text/html":
		title := fmt.Sprintf("%d %s", status, http.StatusText(status))
		return fmt.Appendf(nil, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>%s</title></head>\n"+
			"<body><h1>%s</h1><p>%s</p><p><small>Request %s</small></p></body></html>\n",
			title, title, html.EscapeString(sentence), html.EscapeString(id))
	default:
		return fmt.Appendf(nil, "%s (request %s)\n", sentence, id)
	}
}

// preferred picks the form that Accept gives the highest quality (RFC 9110 section 12.5.1). Between equals, one that is
// named wins over one that only a wildcard covers, then the one named first: many clients that want JSON write
// "application/json, text/plain, */*".
func preferred(accept string) string {
	ranges := parseAccept(accept)
	best, chosen := acceptRange{}, refusalTypes[0]
	for _, kind := range refusalTypes {
		if match, ok := bestRange(ranges, kind); ok && match.quality > 0 && match.before(best) {
			best, chosen = match, kind
		}
	}
	return chosen
}

// acceptRange is one element of Accept.
type acceptRange struct {
	kind     string
	quality  float64
	specific int // 2: type and subtype, 1: type/*, 0: */*
	place    int // from 1, in the list
}

// before orders ranges by preference; the zero value comes last.
func (a acceptRange) before(b acceptRange) bool {
	if a.quality != b.quality {
		return a.quality > b.quality
	}
	if a.specific != b.specific {
		return a.specific > b.specific
	}
	return b.place == 0 || a.place < b.place
}

func parseAccept(list string) []acceptRange {
	var out []acceptRange
	for element := range strings.SplitSeq(list, ",") {
		kind, parameters, _ := strings.Cut(element, ";")
		a := acceptRange{kind: strings.ToLower(strings.TrimSpace(kind)), quality: 1, specific: 2, place: len(out) + 1}
		switch {
		case a.kind == "":
			continue
		case a.kind == "*/*":
			a.specific = 0
		case strings.HasSuffix(a.kind, "/*"):
			a.specific = 1
		}
		for parameter := range strings.SplitSeq(parameters, ";") {
			name, value, _ := strings.Cut(parameter, "=")
			if strings.EqualFold(strings.TrimSpace(name), "q") {
				quality, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil || !(quality >= 0 && quality <= 1) {
					quality = 0
				}
				a.quality = quality
			}
		}
		out = append(out, a)
	}
	return out
}

// bestRange is the most specific range that covers kind: its quality counts, whatever a wildcard says.
func bestRange(ranges []acceptRange, kind string) (best acceptRange, ok bool) {
	major, _, _ := strings.Cut(kind, "/")
	for _, a := range ranges {
		if a.kind != kind && a.kind != major+"/*" && a.kind != "*/*" {
			continue
		}
		if !ok || a.specific > best.specific {
			best, ok = a, true
		}
	}
	return best, ok
}
