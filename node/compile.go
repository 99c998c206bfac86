package node

import (
	"errors"
	"iter"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/health"
	"github.com/pyserve/pyserve/node/route"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// pool is a pool with the backends that it has acquired. Generations share it.
type pool struct {
	*upstream.Pool
	backends []*upstream.Backend
	uses     atomic.Int32                 // generations
	outliers *resourcev1.OutlierDetection // nil: none are looked for
	options  upstream.PoolOptions
}

// release is called once for each generation that uses the pool.
func (p *pool) release() {
	if p.uses.Add(-1) > 0 {
		return
	}
	if p.Pool != nil { // nil: making it panicked
		p.Close()
	}
	for _, b := range p.backends {
		b.Release()
	}
}

// backends may give one more than once.
func (g *Generation) backends() iter.Seq[*upstream.Backend] {
	return func(yield func(*upstream.Backend) bool) {
		for _, p := range g.pools {
			for _, b := range p.backends {
				if !yield(b) {
					return
				}
			}
		}
	}
}

// scratch is room for what one resource after another is read into: all of them together would be garbage the size of the
// bundle, which a collection of the node's whole memory would have to take away while requests run.
type scratch struct {
	pool    resourcev1.Pool
	route   resourcev1.Route
	members []upstream.Member
}

// gonePools are those of the live generation that the next one does not use.
type gonePools map[*upstream.Pool]struct{}

// pooling takes over the pools of the live generation whose resources have not changed, and makes the others.
func (c *compiler) pooling() gonePools {
	section := c.g.section(config.KindPool)
	gone := make(gonePools)
	c.g.pools = make([]*pool, 0, section.Len())
	kept := make([]bool, c.before.section(config.KindPool).Len())
	for i, at := range section.Unchanged(c.before.section(config.KindPool)) {
		c.pace.Step()
		if at < 0 {
			c.addPool(section.At(i))
			continue
		}
		shared := c.before.pools[at]
		shared.uses.Add(1) // it does not go meanwhile: mu is held
		c.g.guard(section.At(i).Name, shared)
		c.g.pools, kept[at] = append(c.g.pools, shared), true
	}
	for at, is := range kept {
		if !is {
			gone[c.before.pools[at].Pool] = struct{}{}
		}
	}
	return gone
}

// addPool makes a pool, with fewer backends or none where it refuses something.
func (c *compiler) addPool(resource bundle.Resource) {
	made := &pool{}
	made.uses.Store(1)
	c.g.pools = append(c.g.pools, made) // first, so that what it acquires is released whatever happens
	members, err := c.members(made, resource)
	if err != nil {
		c.refusals.addf("", "%v", err)
	}
	options := made.options
	if before := c.before.pool(resource.Name); before != nil {
		options.Before = before.Pool
	}
	made.Pool = upstream.NewPool(members, options)
	c.g.guard(resource.Name, made)
}

func (g *Generation) guard(name string, p *pool) {
	if p.outliers == nil {
		return
	}
	if g.guarded == nil {
		g.guarded = make(map[string]*pool)
	}
	g.guarded[name] = p
}

// members acquires the backends of a pool. What it returns is good until the next call.
func (c *compiler) members(made *pool, resource bundle.Resource) ([]upstream.Member, error) {
	p := &c.scratch.pool
	if err := resource.Decode(p); err != nil { // which empties it first
		return nil, err
	}
	if err := health.Supports(p.GetHealthCheck()); err != nil {
		c.refusals.addf(fieldRoutes, "pool %s, health_check: %v", resource.Name, err)
		return nil, nil
	}
	if err := upstream.Supports(p.GetLoadBalancing()); err != nil {
		c.refusals.addf(fieldRoutes, "pool %s, load_balancing: %v", resource.Name, err)
		return nil, nil
	}
	made.options.SlowStart = p.GetSlowStart().AsDuration()
	made.options.PanicPercent = config.PanicPercentOf(p.GetLoadBalancing())
	if l := p.GetLoadBalancing(); l.GetPolicy() > resourcev1.BalancingPolicy_BALANCING_POLICY_ROUND_ROBIN {
		made.options.Balancing = proto.CloneOf(l)
	}
	if b := p.GetCircuitBreaker(); b != nil {
		made.options.CircuitBreaker = proto.CloneOf(b)
	}
	if o := p.GetOutlierDetection(); o != nil {
		made.outliers = proto.CloneOf(o)
	}
	members := c.scratch.members[:0]
	made.backends = make([]*upstream.Backend, 0, len(p.GetBackends()))
	for _, b := range p.GetBackends() {
		spec := upstream.Spec{Host: b.GetHost(), Port: b.GetPort(), Check: p.GetHealthCheck()}
		if b.GetTls() {
			if spec.TLS = p.GetTls(); spec.TLS == nil {
				spec.TLS = &resourcev1.BackendTls{}
			}
		}
		backend, err := c.registry.Acquire(spec)
		if err != nil {
			c.refusals.addf(fieldRoutes, "pool %s, backend %s:%d: %v", resource.Name, b.GetHost(), b.GetPort(), err)
			continue
		}
		made.backends = append(made.backends, backend)
		members = append(members, upstream.Member{Backend: backend, Weight: b.GetWeight()})
	}
	c.scratch.members = members
	return members, nil
}

type (
	rule   = route.Rule[*forward.Route]
	change = route.Change[*forward.Route]
)

// routing takes over the routes of the live generation that have not changed, nor have their pools, and makes the others.
func (c *compiler) routing(gone gonePools) {
	section, old := c.g.section(config.KindRoute), c.before.section(config.KindRoute)
	c.g.routes = make([]*forward.Route, section.Len())
	var news []int // places of those that are made
	kept := make([]bool, old.Len())
	for i, at := range section.Unchanged(old) {
		if at >= 0 && !gone.any(c.before.routes[at]) {
			c.g.routes[i], kept[at] = c.before.routes[at], true
		} else {
			news = append(news, i)
		}
	}
	made := make([]rule, 0, len(news))
	for _, i := range news {
		c.pace.Step()
		if next, ok := c.route(section.At(i)); ok {
			c.g.routes[i] = next.Value
			made = append(made, next)
		}
	}
	for _, r := range c.g.routes {
		if r != nil && r.IsLimited() {
			c.g.limited = append(c.g.limited, r)
		}
		if r != nil && r.Bounded() {
			c.g.bounded = append(c.g.bounded, r)
		}
	}
	if c.before == nil || len(c.refusals) > 0 || len(made) > section.Len()/4 || !c.changeTable(made, kept) {
		c.compileTable(made)
	}
}

// any says whether one of the route's pools is gone.
func (g gonePools) any(r *forward.Route) bool {
	for _, p := range r.EachPool {
		if _, is := g[p]; is {
			return true
		}
	}
	return false
}

// route makes a route, and says which requests are its; or it refuses it.
func (c *compiler) route(resource bundle.Resource) (made rule, ok bool) {
	r := &c.scratch.route
	if err := resource.Decode(r); err != nil {
		c.refusals.addf("", "%v", err)
		return rule{}, false
	}
	pools, ok := c.poolsOf(resource.Name, r)
	if !ok {
		return rule{}, false
	}
	value, err := forward.NewRoute(resource.Name, r, pools[0])
	if err != nil {
		c.refusals.addf(fieldRoutes, "route %s: %v", resource.Name, err)
		return rule{}, false
	}
	if parts := r.GetSplit(); len(parts) > 0 {
		value.Split(parts, pools)
	}
	value.Inherit(c.before.route(resource.Name))
	return ruleOf(r, value), true
}

// poolsOf are those that a route leads to, at least one.
func (c *compiler) poolsOf(route string, r *resourcev1.Route) ([]*upstream.Pool, bool) {
	names := make([]string, 0, 1)
	for _, p := range r.GetSplit() {
		names = append(names, p.GetPool())
	}
	if len(names) == 0 {
		names = append(names, r.GetPool())
	}
	pools := make([]*upstream.Pool, 0, len(names))
	for _, name := range names {
		at, ok := c.g.section(config.KindPool).Find(name)
		if !ok {
			c.refusals.addf(fieldRoutes, "route %s: the bundle has no pool %q", route, name)
			return nil, false
		}
		pools = append(pools, c.g.pools[at].Pool)
	}
	return pools, true
}

func ruleOf(r *resourcev1.Route, value *forward.Route) rule {
	return rule{Path: r.GetPath(), Match: r.GetMatch(), Hosts: r.GetHosts(), Order: r.GetOrder(), Conditions: config.ConditionsOf(r), Value: value}
}

// ruleAgain reads the rule of a route that exists.
func (c *compiler) ruleAgain(resource bundle.Resource, value *forward.Route) (rule, error) {
	r := &c.scratch.route
	if err := resource.Decode(r); err != nil {
		return rule{}, err
	}
	return ruleOf(r, value), nil
}

// changeTable makes the table of the live one, by the rules that were made and, of the live generation's routes, those that
// were not kept. It returns false where the live table cannot be changed so.
func (c *compiler) changeTable(made []rule, kept []bool) bool {
	old := c.before.section(config.KindRoute)
	changes := make([]change, len(made))
	places := make(map[int]int, len(made)) // of a route that was → of its change
	for i := range made {
		changes[i].New = &made[i]
		if at, ok := old.Find(made[i].Value.Name()); ok {
			places[at] = i
		}
	}
	for at, is := range kept {
		if is {
			continue
		}
		before, err := c.ruleAgain(old.At(at), nil)
		if err != nil {
			return false
		}
		if i, ok := places[at]; ok {
			changes[i].Old = &before
		} else {
			changes = append(changes, change{Old: &before})
		}
	}
	if len(changes) == 0 {
		c.g.table.Routes = c.before.table.Routes
		return true
	}
	table, ok, err := c.before.table.Routes.Change(changes)
	c.refuseRule(err, func(i int) *rule { return changes[i].New })
	c.g.table.Routes = table
	return ok
}

// compileTable makes the table of all rules; those that were made are there already, in order.
func (c *compiler) compileTable(made []rule) {
	rules := made
	if len(made) < len(c.g.routes) {
		rules = c.allRules(made)
	}
	table, err := route.Compile(rules, c.pace.Step)
	c.refuseRule(err, func(i int) *rule { return &rules[i] })
	c.g.table.Routes = table
}

func (c *compiler) allRules(made []rule) []rule {
	section := c.g.section(config.KindRoute)
	rules := make([]rule, 0, section.Len())
	for i, value := range c.g.routes {
		c.pace.Step()
		switch {
		case value == nil: // refused
		case len(made) > 0 && made[0].Value == value:
			rules = append(rules, made[0])
			made = made[1:]
		default:
			again, err := c.ruleAgain(section.At(i), value)
			if err != nil {
				c.refusals.addf("", "%v", err)
			}
			rules = append(rules, again)
		}
	}
	return rules
}

func (c *compiler) refuseRule(err error, of func(index int) *rule) {
	var refused *route.RuleError
	switch {
	case errors.As(err, &refused):
		c.refusals.addf(fieldRoutes, "route %s: %s: %s", of(refused.Index).Value.Name(), refused.Field, refused.Reason)
	case err != nil:
		c.refusals.addf(fieldRoutes, "%v", err)
	}
}
