package identity

import (
	"fmt"
	"strings"
)

// Role is what sort of peer a certificate is for. The zero value is none.
type Role uint8

// The roles there are. Those of people follow each other: each may do all that the one before it may.
const (
	// RoleNode and RoleControl are machines; what they may, nobody else may.
	RoleNode Role = iota + 1
	RoleControl
	// RoleViewer reads.
	RoleViewer
	// RoleEditor changes the configuration too.
	RoleEditor
	// RoleOperator changes what nodes do, too.
	RoleOperator
	// RoleAdmin changes who may do what, too.
	RoleAdmin
)

var roleNames = [...]string{
	RoleNode: "node", RoleControl: "control",
	RoleViewer: "viewer", RoleEditor: "editor", RoleOperator: "operator", RoleAdmin: "admin",
}

// String is the role as it stands in a certificate.
func (r Role) String() string {
	if r == 0 || int(r) >= len(roleNames) {
		return fmt.Sprintf("role %d", uint8(r))
	}
	return roleNames[r]
}

// Includes says whether who has the role may do what another needs.
func (r Role) Includes(need Role) bool {
	return r == need || r.IsPerson() && need.IsPerson() && r > need
}

// IsPerson says whether the role is one of people.
func (r Role) IsPerson() bool { return r >= RoleViewer && r <= RoleAdmin }

func parseRole(s string) (Role, bool) {
	for role, name := range roleNames {
		if s == name && role > 0 {
			return Role(role), true
		}
	}
	return 0, false
}

// ParsePersonRole reads the role of a person.
func ParsePersonRole(s string) (Role, error) {
	if role, ok := parseRole(s); ok && role.IsPerson() {
		return role, nil
	}
	return 0, fmt.Errorf("a role is %s, not %.40q", strings.Join(roleNames[RoleViewer:], ", "), s)
}
