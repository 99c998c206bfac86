package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// topOutput is the stable form for programs. Rates are per second.
type topOutput struct {
	Seconds float64    `json:"seconds"`
	Nodes   []topNode  `json:"nodes"`
	Routes  []topRoute `json:"routes"`
}

// topRates are what was counted between two looks, divided by the time. Times are estimated from buckets; 0: no request.
type topRates struct {
	Requests float64 `json:"requests"`
	Errors   float64 `json:"errors"`
	Refused  float64 `json:"refused"`
	Received float64 `json:"received"`
	Sent     float64 `json:"sent"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
}

type topNode struct {
	Name        string `json:"name"`
	InFlight    uint64 `json:"in_flight"`
	Connections uint64 `json:"connections"`
	WebSockets  uint64 `json:"websockets"`
	topRates
	// Note says why a node has no figures.
	Note string `json:"note"`

	silent bool // nothing was heard of it, which is not that it has nothing to tell
}

type topRoute struct {
	Route string `json:"route"`
	topRates
}

type topFlags struct {
	interval time.Duration
	limit    int
	watch    bool
}

func newTopCommand(s *settings) *cobra.Command {
	o := topFlags{}
	cmd := &cobra.Command{
		Use:   "top",
		Short: "What every node and the busiest routes do right now",
		Long: `What every node and the busiest routes do right now: requests, errors (5xx, and requests without an answer), refusals
(4xx) and bytes in a second, measured between two looks that are --interval apart; requests and connections that are
open; and how long requests took, of which half and 99 in 100 took less. These times are estimated from a histogram whose
buckets a node's /metrics shows.

Of routes, those with the most requests since their node was started are looked at.`,
		Example: `  pyservectl top
  pyservectl top -w --interval 5s
  pyservectl top -o json | jq '.nodes[] | {name, requests}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.interval < 100*time.Millisecond || o.interval > time.Minute {
				return fmt.Errorf("--interval %s is not between 100ms and 1m", o.interval)
			}
			return s.top(cmd, o)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.interval, "interval", 2*time.Second, "the time between two looks")
	f.IntVar(&o.limit, "limit", 20, "how many routes are shown")
	f.BoolVarP(&o.watch, "watch", "w", false, "follow until interrupted")
	return cmd
}

// topAsk is how many routes of each node are asked for: the ones that are busy now are among those that were before.
const topAsk = 500

func (s *settings) top(cmd *cobra.Command, o topFlags) error {
	connecting, cancel := s.deadline(cmd.Context())
	defer cancel()
	c, err := s.connect(connecting, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer c.close()
	look := func() (map[string]*operatorv1.NodeSample, error) {
		ctx, cancel := s.deadline(cmd.Context())
		defer cancel()
		m, err := c.ListSamples(ctx, &operatorv1.ListSamplesRequest{Routes: topAsk})
		if err != nil {
			return nil, plain(err)
		}
		return byNode(m), nil
	}
	before, err := look()
	if err != nil {
		return err
	}
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	for first := true; ; first = false {
		select {
		case <-tick.C:
		case <-cmd.Context().Done():
			return nil // interrupted, as is meant
		}
		after, err := look()
		if err != nil {
			return interrupted(cmd.Context(), err)
		}
		if o.watch && !s.structured() {
			s.nextScreen(cmd.OutOrStdout(), first)
		}
		if err := s.printTop(cmd.OutOrStdout(), topOf(before, after, o.limit)); err != nil || !o.watch {
			return err
		}
		before = after
	}
}

// interrupted takes an error for none where the user has ended the command.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func byNode(m *operatorv1.ListSamplesResponse) map[string]*operatorv1.NodeSample {
	out := map[string]*operatorv1.NodeSample{}
	for _, n := range m.GetNodes() {
		out[n.GetNode()] = n
	}
	return out
}

// topOf compares two looks. A node that was not there at the first, or has started again since, has no rates yet.
func topOf(before, after map[string]*operatorv1.NodeSample, limit int) topOutput {
	out := topOutput{Nodes: []topNode{}, Routes: []topRoute{}}
	routes := map[string]*difference{}
	for name, now := range after {
		row := topNode{Name: name, Note: now.GetFailure(), silent: now.GetSample() == nil}
		if sample := now.GetSample(); sample != nil {
			row.InFlight, row.WebSockets = sample.GetLoad().GetRequests(), sample.GetLoad().GetTunnels()
			row.Connections = sample.GetConnections()
			was := before[name].GetSample()
			seconds := sample.GetAt().AsDuration().Seconds() - was.GetAt().AsDuration().Seconds()
			if was == nil || seconds <= 0 {
				row.Note = "has just come; the next look has its rates"
			} else {
				var d difference
				d.add(was.GetAll(), sample.GetAll(), seconds)
				row.topRates = d.rates(sample.GetBounds())
				out.Seconds = max(out.Seconds, seconds)
				addRoutes(routes, was, sample, seconds)
			}
		}
		out.Nodes = append(out.Nodes, row)
	}
	slices.SortFunc(out.Nodes, func(a, b topNode) int { return cmp.Compare(a.Name, b.Name) })
	for name, d := range routes {
		if rates := d.rates(d.bounds); rates.Requests > 0 {
			out.Routes = append(out.Routes, topRoute{name, rates})
		}
	}
	slices.SortFunc(out.Routes, func(a, b topRoute) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Route, b.Route))
	})
	out.Routes = out.Routes[:min(len(out.Routes), max(limit, 0))]
	return out
}

// addRoutes adds a node's to those of the others. A route that the first look does not have had nothing to count then, or
// was not among the busiest.
func addRoutes(sum map[string]*difference, was, now *fleetv1.Sample, seconds float64) {
	old := map[string]*fleetv1.Counts{}
	for _, r := range was.GetRoutes() {
		old[r.GetRoute()] = r.GetCounts()
	}
	for _, r := range now.GetRoutes() {
		before, known := old[r.GetRoute()]
		if !known && len(was.GetRoutes()) >= int(was.GetRouteCount()) {
			before = &fleetv1.Counts{}
		} else if !known {
			continue
		}
		d := sum[r.GetRoute()]
		if d == nil {
			d = &difference{bounds: now.GetBounds()}
			sum[r.GetRoute()] = d
		}
		d.add(before, r.GetCounts(), seconds)
	}
}

// difference is what was counted between two looks, in a second.
type difference struct {
	requests, errors, refused, received, sent float64
	buckets, bounds                           []float64
}

func (d *difference) add(was, now *fleetv1.Counts, seconds float64) {
	d.requests += rate(was.GetRequests(), now.GetRequests(), seconds)
	d.errors += rate(was.GetErrors(), now.GetErrors(), seconds)
	d.refused += rate(was.GetRefused(), now.GetRefused(), seconds)
	d.received += rate(was.GetReceived(), now.GetReceived(), seconds)
	d.sent += rate(was.GetSent(), now.GetSent(), seconds)
	for i, n := range now.GetBuckets() {
		if i >= len(d.buckets) {
			d.buckets = append(d.buckets, 0)
		}
		old := uint64(0)
		if i < len(was.GetBuckets()) {
			old = was.GetBuckets()[i]
		}
		d.buckets[i] += rate(old, n, seconds)
	}
}

// rate is 0 for a counter that has fallen, as it does when a route was removed and came back.
func rate(was, now uint64, seconds float64) float64 {
	if now < was {
		return 0
	}
	return float64(now-was) / seconds
}

func (d *difference) rates(bounds []float64) topRates {
	return topRates{
		Requests: d.requests, Errors: d.errors, Refused: d.refused, Received: d.received, Sent: d.sent,
		P50: 1000 * quantile(0.5, d.buckets, bounds), P99: 1000 * quantile(0.99, d.buckets, bounds),
	}
}

// quantile is where q of the requests took less, taken as spread evenly over their bucket; beyond the last bound it is that.
func quantile(q float64, buckets, bounds []float64) float64 {
	var all float64
	for _, n := range buckets {
		all += n
	}
	rank, low := q*all, 0.0
	for i, bound := range bounds {
		if i >= len(buckets) {
			break
		}
		if rank <= buckets[i] && buckets[i] > 0 {
			return low + (bound-low)*rank/buckets[i]
		}
		rank -= buckets[i]
		low = bound
	}
	if all == 0 {
		return 0
	}
	return low
}

func (s *settings) printTop(out io.Writer, t topOutput) error {
	switch s.output {
	case "json", "yaml":
		return s.print(out, t)
	case "name":
		for _, n := range t.Nodes {
			fmt.Fprintln(out, n.Name)
		}
		return nil
	}
	var rows [][]string
	for _, n := range t.Nodes {
		if n.silent {
			rows = append(rows, append([]string{n.Name}, append(make([]string, 10), n.Note)...))
			continue
		}
		rows = append(rows, append([]string{n.Name}, append(n.cells(), strconv.FormatUint(n.InFlight, 10),
			strconv.FormatUint(n.Connections, 10), strconv.FormatUint(n.WebSockets, 10), n.Note)...))
	}
	rateHead := []string{"REQ/S", "5XX/S", "4XX/S", "IN/S", "OUT/S", "P50", "P99"}
	if err := table(out, slices.Concat([]string{"NODE"}, rateHead, []string{"IN FLIGHT", "CONNS", "WEBSOCKETS", "NOTE"}), rows); err != nil {
		return err
	}
	if len(t.Routes) == 0 {
		return nil
	}
	rows = nil
	for _, r := range t.Routes {
		rows = append(rows, append([]string{r.Route}, r.cells()...))
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return err
	}
	return table(out, slices.Concat([]string{"ROUTE"}, rateHead), rows)
}

func (r topRates) cells() []string {
	return []string{number(r.Requests), number(r.Errors), number(r.Refused), size(r.Received), size(r.Sent), milliseconds(r.P50), milliseconds(r.P99)}
}

func number(n float64) string {
	if n == 0 || n >= 10 {
		return strconv.FormatFloat(n, 'f', 0, 64)
	}
	return strconv.FormatFloat(n, 'f', 1, 64)
}

func size(bytes float64) string {
	units := []string{"B", "KB", "MB", "GB", "TB"}
	i := 0
	for bytes >= 1000 && i < len(units)-1 {
		bytes /= 1000
		i++
	}
	return number(bytes) + units[i]
}

// milliseconds is empty where no request came.
func milliseconds(ms float64) string {
	switch {
	case ms == 0:
		return ""
	case ms >= 1000:
		return number(ms/1000) + "s"
	}
	return number(ms) + "ms"
}
