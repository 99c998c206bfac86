package agent

import (
	"context"
	"time"

	"google.golang.org/grpc"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// renewTime bounds one renewal.
const renewTime = 10 * time.Second

// renew asks control for a fresh certificate for the identity's key.
func (a *Agent) renew(ctx context.Context, conn *grpc.ClientConn, id *Identity) (*Identity, error) {
	request, err := id.request()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	response, err := fleetv1.NewFleetClient(conn).Renew(ctx, &fleetv1.RenewRequest{CertificateRequest: request})
	if err != nil {
		return nil, plain(err)
	}
	fresh, err := received(id.Name, id.KeyPEM, response.GetIdentity())
	if err != nil {
		return nil, err
	}
	if len(fresh.Voucher) == 0 {
		fresh.Voucher = id.Voucher // from a control of an older version
	}
	fresh.GossipKeys, fresh.GossipSeeds, fresh.Controls = id.GossipKeys, id.GossipSeeds, id.Controls
	_, until := fresh.Lifetime()
	a.options.Logger.Info("renewed the node's certificate", "until", until)
	return fresh, nil
}

// expired says whether the node's certificate has ended, by the node's clock or by what a control said.
func (a *Agent) expired() bool {
	_, until := a.identity.Load().Lifetime()
	return a.unwelcome || a.options.Now().After(until)
}

// revive renews a certificate that has ended, as that of a machine that was off for some time: control takes it for that
// one call. The connection was made with the old one, so another is needed afterwards.
func (a *Agent) revive(ctx context.Context, conn *grpc.ClientConn) error {
	fresh, err := a.renew(ctx, conn, a.identity.Load())
	if err != nil {
		return err
	}
	a.unwelcome = false
	a.identity.Store(fresh)
	if err := fresh.save(a.options.DataDir); err != nil {
		a.options.Logger.Error("cannot keep the renewed certificate; the next start has to renew it again", "error", err)
	}
	return nil
}
