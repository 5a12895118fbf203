// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"regexp"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Colour is a route that sends marked requests to one side.
type Colour struct {
	// Name is the colour's own.
	Name string
	// To is the side.
	To v1alpha1.SideName

	marks []v1alpha1.ColourMark
}

// Colours returns those colours of a spec that are in force, in their order: a colour whose side has no ready endpoint
// is left out, so that its requests are shared like all others, unless it asks for failure. A colour whose regular
// expression is none is a *RefusedError.
func Colours(colours []v1alpha1.Colour, stableReady, canaryReady int32) ([]Colour, error) {
	var inForce []Colour
	for _, colour := range colours {
		for _, mark := range colour.Match.Any {
			if mark.Header == nil {
				continue
			}
			if _, err := regexp.Compile(mark.Header.Regex); err != nil {
				return nil, refuse(v1alpha1.ReasonInvalidColour,
					"colour %q: header %s has a regex that is none (%v); correct it", colour.Name, mark.Header.Name, err)
			}
		}
		ready := stableReady
		if colour.To == v1alpha1.SideCanary {
			ready = canaryReady
		}
		if ready > 0 || colour.Fallback == v1alpha1.FallbackNone {
			inForce = append(inForce, Colour{Name: colour.Name, To: colour.To, marks: colour.Match.Any})
		}
	}
	return inForce, nil
}

// RouteName returns the name of the colour's route.
func (c Colour) RouteName() string { return "colour-" + c.Name }

// virtualServiceMatches returns the matches of the colour's route in a VirtualService.
func (c Colour) virtualServiceMatches() []any {
	match := make([]any, 0, len(c.marks))
	for _, mark := range c.marks {
		headers := map[string]any{}
		if header := mark.Header; header != nil {
			headers[header.Name] = headerMatch(header)
		}
		if cookie := mark.Cookie; cookie != nil {
			headers["cookie"] = map[string]any{"regex": CookieRegex(cookie.Name, cookie.Value)}
		}
		match = append(match, map[string]any{"headers": headers})
	}
	return match
}

func headerMatch(header *v1alpha1.HeaderMark) map[string]any {
	switch {
	case header.Exact != "":
		return map[string]any{"exact": header.Exact}
	case header.Prefix != "":
		return map[string]any{"prefix": header.Prefix}
	default:
		return map[string]any{"regex": header.Regex}
	}
}

// CookieRegex returns a regular expression that fits a whole Cookie header with a cookie of exactly this name and value
// in it.
func CookieRegex(name, value string) string {
	return cookieRegex(name, regexp.QuoteMeta(value))
}
