package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// routePolicyDetails and poolPolicyDetails tell what differs between policies. Their messages have the dialect's names, so
// one walk over the fields serves them all.
func routePolicyDetails(a, b *resourcev1.Route) []string {
	return slices.Concat(
		detailUnless("", a == nil, "forwarded path", a.GetForwardPath(), b.GetForwardPath()),
		detailUnless(0, a == nil, "max_body_bytes", a.GetMaxBodyBytes(), b.GetMaxBodyBytes()),
		policyDetails("rate_limit", a.GetRateLimit(), b.GetRateLimit()),
		policyDetails("request_headers", a.GetRequestHeaders(), b.GetRequestHeaders()),
		policyDetails("response_headers", a.GetResponseHeaders(), b.GetResponseHeaders()),
		policyDetails("redirect", a.GetRedirect(), b.GetRedirect()),
		policyDetails("respond", a.GetRespond(), b.GetRespond()),
		policyDetails("retries", a.GetRetries(), b.GetRetries()),
		policyDetails("sticky", a.GetSticky(), b.GetSticky()))
}

func poolPolicyDetails(a, b *resourcev1.Pool) []string {
	return slices.Concat(
		policyDetails("load_balancing", a.GetLoadBalancing(), b.GetLoadBalancing()),
		policyDetails("slow_start", a.GetSlowStart(), b.GetSlowStart()),
		policyDetails("outlier_detection", a.GetOutlierDetection(), b.GetOutlierDetection()),
		policyDetails("circuit_breaker", a.GetCircuitBreaker(), b.GetCircuitBreaker()))
}

// policyDetails compares two messages of one kind, either of which may be a nil pointer.
func policyDetails(name string, a, b proto.Message) []string {
	from, to := a.ProtoReflect(), b.ProtoReflect()
	switch {
	case !from.IsValid() && !to.IsValid():
		return nil
	case !to.IsValid():
		return []string{name + ": removed"}
	case !from.IsValid():
		return []string{name + ": " + policyText(to)}
	case proto.Equal(a, b):
		return nil
	}
	if _, single := a.(*durationpb.Duration); single {
		return []string{name + ": " + policyText(from) + " → " + policyText(to)}
	}
	var details []string
	fields := from.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if before, after := fieldText(from, f), fieldText(to, f); before != after {
			details = append(details, fmt.Sprintf("%s: %s %s → %s", name, f.Name(), before, after))
		}
	}
	return details
}

// policyText writes a message on one line, without the fields that are not set.
func policyText(m protoreflect.Message) string {
	if d, ok := m.Interface().(*durationpb.Duration); ok {
		return span(d.AsDuration())
	}
	var parts []string
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); m.Has(f) {
			parts = append(parts, string(f.Name())+" "+fieldText(m, f))
		}
	}
	return strings.Join(parts, ", ")
}

// unset is what fields stand for that are not set, where that is not none.
var unset = map[protoreflect.FullName]string{"pyserve.resource.v1.LoadBalancing.panic_percent": strconv.Itoa(defaultPanicPercent)}

func fieldText(m protoreflect.Message, f protoreflect.FieldDescriptor) string {
	if f.HasPresence() && !m.Has(f) {
		return cmp.Or(unset[f.FullName()], "none")
	}
	if !f.IsList() {
		return valueText(f, m.Get(f))
	}
	list := m.Get(f).List()
	items := make([]string, list.Len())
	for i := range items {
		items[i] = valueText(f, list.Get(i))
	}
	return "[" + strings.Join(items, "; ") + "]"
}

func valueText(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return policyText(v.Message())
	case protoreflect.StringKind:
		return strconv.Quote(v.String())
	case protoreflect.EnumKind:
		return enumText(f.Enum(), v.Enum())
	}
	return v.String()
}

// enumText gives "round_robin" for BALANCING_POLICY_ROUND_ROBIN of BalancingPolicy.
func enumText(e protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	zero := string(e.Values().Get(0).Name())
	value := e.Values().ByNumber(n)
	if value == nil {
		return strconv.Itoa(int(n))
	}
	return strings.ToLower(strings.TrimPrefix(string(value.Name()), strings.TrimSuffix(zero, "UNSPECIFIED")))
}
