package forward

import (
	"testing"

	"github.com/pyserve/pyserve/node/outlier"
)

func TestStatusesThatSpeakAgainstABackend(t *testing.T) {
	for status, want := range map[int]outlier.Outcome{
		101: outlier.Fine, 200: outlier.Fine, 404: outlier.Fine, 429: outlier.Fine, 501: outlier.Fine, 505: outlier.Fine,
		500: outlier.Answered, 502: outlier.Answered, 503: outlier.Answered, 504: outlier.Answered, 599: outlier.Answered,
	} {
		if got := outcomeOf(status); got != want {
			t.Errorf("%d: %v, want %v", status, got, want)
		}
	}
}
