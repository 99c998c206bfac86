package api

import (
	"github.com/pyserve/pyserve/control/identity"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

// anonymous is the role of a caller without a certificate.
const anonymous identity.Role = 0

// permissions says which role a caller of each method needs at least; the roles of people include each other, those of
// machines stand alone. A method that is not here may be called by nobody; a test holds it against the services.
//
// A viewer reads what runs, an editor changes it, an operator steers nodes, and an admin says who may do what.
var permissions = map[string]identity.Role{
	fleetv1.Enrollment_Enroll_FullMethodName: anonymous,
	fleetv1.Enrollment_Join_FullMethodName:   anonymous, // its token says who may

	replicav1.Replica_Attend_FullMethodName:       identity.RoleControl,
	replicav1.Replica_Write_FullMethodName:        identity.RoleControl,
	replicav1.Replica_Announce_FullMethodName:     identity.RoleControl,
	replicav1.Replica_ListVerdicts_FullMethodName: identity.RoleControl,

	fleetv1.Fleet_Connect_FullMethodName: identity.RoleNode,
	fleetv1.Fleet_Renew_FullMethodName:   identity.RoleNode,

	operatorv1.Operator_GetStatus_FullMethodName:      identity.RoleViewer,
	operatorv1.Operator_WatchStatus_FullMethodName:    identity.RoleViewer,
	operatorv1.Operator_GetConfig_FullMethodName:      identity.RoleViewer,
	operatorv1.Operator_ListRoutes_FullMethodName:     identity.RoleViewer,
	operatorv1.Operator_ListBackends_FullMethodName:   identity.RoleViewer,
	operatorv1.Operator_ListControls_FullMethodName:   identity.RoleViewer,
	operatorv1.Operator_ListRevisions_FullMethodName:  identity.RoleViewer,
	operatorv1.Operator_Explain_FullMethodName:        identity.RoleViewer,
	operatorv1.Operator_ExplainBackend_FullMethodName: identity.RoleViewer,
	operatorv1.Operator_WatchEvents_FullMethodName:    identity.RoleViewer,
	operatorv1.Operator_ListSamples_FullMethodName:    identity.RoleViewer,
	// Diff changes nothing, but takes a whole document with its keys to be compiled.
	operatorv1.Operator_Diff_FullMethodName:      identity.RoleEditor,
	operatorv1.Operator_Apply_FullMethodName:     identity.RoleEditor,
	operatorv1.Operator_Rollback_FullMethodName:  identity.RoleEditor,
	operatorv1.Operator_FindFiles_FullMethodName: identity.RoleEditor,

	operatorv1.Operator_Drain_FullMethodName:   identity.RoleOperator,
	operatorv1.Operator_Undrain_FullMethodName: identity.RoleOperator,

	operatorv1.Operator_RemoveControl_FullMethodName: identity.RoleAdmin,

	operatorv1.Access_CreateToken_FullMethodName:     identity.RoleAdmin,
	operatorv1.Access_ListTokens_FullMethodName:      identity.RoleAdmin,
	operatorv1.Access_RevokeToken_FullMethodName:     identity.RoleAdmin,
	operatorv1.Access_RevokeNode_FullMethodName:      identity.RoleAdmin,
	operatorv1.Access_CreateContext_FullMethodName:   identity.RoleAdmin,
	operatorv1.Access_ListContexts_FullMethodName:    identity.RoleAdmin,
	operatorv1.Access_RevokeContext_FullMethodName:   identity.RoleAdmin,
	operatorv1.Access_RotateAuthority_FullMethodName: identity.RoleAdmin,
	operatorv1.Access_FinishRotation_FullMethodName:  identity.RoleAdmin,
	operatorv1.Access_GetAuthority_FullMethodName:    identity.RoleAdmin,
	operatorv1.Access_RotateGossipKey_FullMethodName: identity.RoleAdmin,
	operatorv1.Access_CancelGossipKey_FullMethodName: identity.RoleAdmin,
	operatorv1.Access_GetGossipKey_FullMethodName:    identity.RoleAdmin,
	operatorv1.Access_ListAudit_FullMethodName:       identity.RoleAdmin,
	operatorv1.Access_Backup_FullMethodName:          identity.RoleAdmin,
	operatorv1.Access_Restore_FullMethodName:         identity.RoleAdmin,
}

// audited are the methods that change something: each call is an entry of the audit trail. A test holds it against the
// names of the methods.
var audited = map[string]bool{
	fleetv1.Enrollment_Join_FullMethodName:           true,
	operatorv1.Operator_RemoveControl_FullMethodName: true,
	fleetv1.Enrollment_Enroll_FullMethodName:         true,
	operatorv1.Operator_Apply_FullMethodName:         true,
	operatorv1.Operator_Rollback_FullMethodName:      true,
	operatorv1.Operator_Drain_FullMethodName:         true,
	operatorv1.Operator_Undrain_FullMethodName:       true,
	operatorv1.Access_CreateToken_FullMethodName:     true,
	operatorv1.Access_RevokeToken_FullMethodName:     true,
	operatorv1.Access_RevokeNode_FullMethodName:      true,
	operatorv1.Access_CreateContext_FullMethodName:   true,
	operatorv1.Access_RevokeContext_FullMethodName:   true,
	operatorv1.Access_RotateAuthority_FullMethodName: true,
	operatorv1.Access_FinishRotation_FullMethodName:  true,
	operatorv1.Access_RotateGossipKey_FullMethodName: true,
	operatorv1.Access_CancelGossipKey_FullMethodName: true,
	operatorv1.Access_Backup_FullMethodName:          true, // it takes everything away, though it changes nothing
	operatorv1.Access_Restore_FullMethodName:         true,
}
