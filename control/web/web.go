// Package web is control's page for people: the fleet, the routes and the backends at one glance, read only, without
// scripts and without anything from elsewhere.
//
// It keeps no state; [Handler] is all there is.
package web

import (
	"bytes"
	_ "embed"
	"html/template"
	"log/slog"
	"net/http"
	"time"

	"github.com/pyserve/pyserve/control"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

//go:embed page.html
var pageSource string

// rows bounds the tables: a page of 100,000 rows helps nobody, and pyservectl has them all.
const rows = 500

// page is what the template shows.
type page struct {
	Status       *operatorv1.GetStatusResponse
	Partial      bool // this control knows its own nodes alone
	Routes       []*operatorv1.RouteSummary
	Backends     []*operatorv1.BackendSummary
	MoreRoutes   int
	MoreBackends int
	Now          time.Time
}

// Handler serves the page at "/" of a control that was started.
func Handler(c *control.Control, logger *slog.Logger) http.Handler {
	view := template.Must(template.New("page").Funcs(template.FuncMap{
		"short": func(digest string) string { return digest[:min(len(digest), 12)] },
		"age":   func(now, since time.Time) string { return now.Sub(since).Round(time.Second).String() },
	}).Parse(pageSource))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the dashboard is read only", http.StatusMethodNotAllowed)
			return
		}
		var out bytes.Buffer
		p, err := collect(c)
		if err == nil {
			err = view.Execute(&out, p)
		}
		if err != nil {
			logger.Error("cannot make the dashboard", "error", err)
			http.Error(w, "the dashboard cannot be made; control's log says why", http.StatusInternalServerError)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		w.Write(out.Bytes())
	})
}

func collect(c *control.Control) (*page, error) {
	p := &page{Status: c.Status(), Partial: c.Partial(), Now: time.Now()}
	var err error
	if p.Routes, err = c.Routes(); err != nil {
		return nil, err
	}
	if p.Backends, err = c.Backends(); err != nil {
		return nil, err
	}
	if n := len(p.Routes) - rows; n > 0 {
		p.Routes, p.MoreRoutes = p.Routes[:rows], n
	}
	if n := len(p.Backends) - rows; n > 0 {
		p.Backends, p.MoreBackends = p.Backends[:rows], n
	}
	return p, nil
}
