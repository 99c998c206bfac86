package api

import (
	"testing"

	"google.golang.org/grpc/codes"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestExplainSaysWhyItCannot(t *testing.T) {
	c := operatorv1.NewOperatorClient(newSite(t).operator(t))
	for want, m := range map[codes.Code]*operatorv1.ExplainRequest{
		codes.FailedPrecondition: {Method: "GET", Url: "/"},
		codes.NotFound:           {Method: "GET", Url: "/", Node: "n1"},
		codes.InvalidArgument:    {Method: "GET", Url: "ftp://a"},
	} {
		_, err := c.Explain(deadline(t), m)
		checkCode(t, err, want, "")
	}
}
