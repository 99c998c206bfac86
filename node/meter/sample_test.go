package meter

import (
	"fmt"
	"testing"
	"time"
)

func TestASampleHasEverythingAndNamesTheBusiest(t *testing.T) {
	s, err := NewSet(Options{Shards: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		r := s.Route(fmt.Sprintf("/%d", i))
		for range i {
			r.Ended(uint32(i), 200+100*(i%4), 2*time.Millisecond, 3, 5)
		}
	}
	all, busiest, used := s.Sample(2)
	if used != 9 || all.Requests != 45 || all.Refused != 2+6 || all.Errors != 3+7 || all.Received != 45*3 || all.Sent != 45*5 || all.Buckets[1] != 45 {
		t.Errorf("%d used, all %+v", used, all)
	}
	if len(busiest) != 2 || busiest[0].Route != "/9" || busiest[0].Requests != 9 || busiest[1].Route != "/8" {
		t.Errorf("the busiest are %+v", busiest)
	}
	if len(Bounds()) != len(all.Buckets)-1 {
		t.Error("bounds and buckets do not go together")
	}
	if _, none, _ := s.Sample(0); len(none) != 0 {
		t.Errorf("asked for no route: %+v", none)
	}
}
