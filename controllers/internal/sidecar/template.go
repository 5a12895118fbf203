// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
)

var stringType = cel.StringType

// Templates begin in one of these ways, which no shell and no other template language takes for its own: what begins
// otherwise is plain text, such as ${HOME} in a script.
var templateStarts = []string{"${" + variable + ".", "${" + modelVariable + "}", "${" + modelVariable + "."}

// maxFilled bounds a string with its templates filled in, in bytes.
const maxFilled = 32 << 10

// fill replaces the templates of a text by what value returns for their expressions.
func fill(text string, value func(expression string) (string, error)) (string, error) {
	var filled strings.Builder
	for {
		at := nextTemplate(text)
		if at < 0 {
			filled.WriteString(text)
			return filled.String(), nil
		}
		end := endOfTemplate(text[at+len("${"):])
		if end < 0 {
			return "", fmt.Errorf("the template that begins with %q has no end", start(text[at:]))
		}
		expression := text[at+len("${") : at+len("${")+end]
		got, err := value(expression)
		if err != nil {
			return "", fmt.Errorf("${%s}: %w", start(expression), err)
		}
		filled.WriteString(text[:at])
		filled.WriteString(got)
		if filled.Len() > maxFilled {
			return "", fmt.Errorf("with its templates filled in it is longer than %d bytes", maxFilled)
		}
		text = text[at+len("${")+end+1:]
	}
}

func nextTemplate(text string) int {
	next := -1
	for _, prefix := range templateStarts {
		if at := strings.Index(text, prefix); at >= 0 && (next < 0 || at < next) {
			next = at
		}
	}
	return next
}

// endOfTemplate returns the place of the brace that closes an expression, -1 if there is none. Braces in the expression
// come in pairs or stand in quotes.
func endOfTemplate(text string) int {
	depth := 0
	var quote byte
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quote != 0 && c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '{':
			depth++
		case c == '}' && depth == 0:
			return i
		case c == '}':
			depth--
		}
	}
	return -1
}

func start(text string) string {
	const longest = 48
	if len(text) <= longest {
		return text
	}
	return strings.ToValidUTF8(text[:longest], "") + "..."
}

// evaluate returns the text that an expression comes to for a subject.
func evaluate(expression string, subject Subject) (string, error) {
	if subject.Object == nil {
		return "", errors.New("the InferenceService is not known")
	}
	object, err := subject.Object()
	if err != nil {
		return "", err
	}
	program, err := compile(expression, stringType)
	if err != nil {
		return "", err
	}
	value, _, err := program.Eval(map[string]any{variable: object, modelVariable: subject.ModelURI})
	if err != nil {
		return "", fmt.Errorf("evaluating: %w", err)
	}
	text, ok := value.(types.String)
	if !ok {
		return "", fmt.Errorf("the result is a %s, and must be a string: string(...) makes one", value.Type().TypeName())
	}
	return string(text), nil
}

// eachString returns plain JSON with every string replaced; errors name the field.
func eachString(value any, path string, replace func(string) (string, error)) (any, error) {
	switch value := value.(type) {
	case string:
		text, err := replace(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return text, nil
	case []any:
		list := make([]any, len(value))
		for i := range value {
			item, err := eachString(value[i], fmt.Sprintf("%s[%d]", path, i), replace)
			if err != nil {
				return nil, err
			}
			list[i] = item
		}
		return list, nil
	case map[string]any:
		object := make(map[string]any, len(value))
		for _, key := range slices.Sorted(maps.Keys(value)) {
			item, err := eachString(value[key], path+"."+key, replace)
			if err != nil {
				return nil, err
			}
			object[key] = item
		}
		return object, nil
	default:
		return value, nil
	}
}
