// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"k8s.io/apiserver/pkg/cel/environment"
)

const (
	// variable is the name of the InferenceService in an expression.
	variable = "isvc"
	// modelVariable is the name of the address of its model.
	modelVariable = "modelUri"
	// costLimit bounds the evaluation of one expression, in CEL's units: some ten milliseconds.
	costLimit = 100_000
	// maxPrograms bounds how many compiled expressions are kept.
	maxPrograms = 4096
)

// language is the CEL of the API server with two variables. Making it takes milliseconds, so it is made once, when the
// first expression is met.
var language = sync.OnceValues(func() (*cel.Env, error) {
	set, err := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion(), true).Extend(environment.VersionedOptions{
		IntroducedVersion: environment.DefaultCompatibilityVersion(),
		EnvOptions: []cel.EnvOption{
			cel.Variable(variable, cel.DynType), cel.Variable(modelVariable, cel.StringType),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making the CEL environment: %w", err)
	}
	return set.StoredExpressionsEnv(), nil
})

// programs are compiled expressions, by kind and text. What an expression means never changes, so that this is no state.
var programs = struct {
	sync.Mutex
	by map[programKey]compiled
}{by: map[programKey]compiled{}}

type programKey struct {
	text string
	kind *cel.Type
}

type compiled struct {
	program cel.Program
	err     error
}

// compile returns the program of an expression with a result of a kind; errors name the position.
func compile(text string, kind *cel.Type) (cel.Program, error) {
	key := programKey{text, kind}
	programs.Lock()
	defer programs.Unlock()
	if c, ok := programs.by[key]; ok {
		return c.program, c.err
	}
	program, err := compileAnew(text, kind)
	if len(programs.by) >= maxPrograms {
		clear(programs.by)
	}
	programs.by[key] = compiled{program, err}
	return program, err
}

func compileAnew(text string, kind *cel.Type) (cel.Program, error) {
	env, err := language()
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(text)
	if issues != nil && len(issues.Errors()) > 0 {
		first := issues.Errors()[0]
		return nil, fmt.Errorf("line %d, column %d: %s", first.Location.Line(), first.Location.Column()+1, first.Message)
	}
	if out := ast.OutputType(); !out.IsExactType(kind) && !out.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("line 1, column 1: the result is %s, and must be %s", out, kind)
	}
	program, err := env.Program(ast, cel.CostLimit(costLimit), cel.InterruptCheckFrequency(100))
	if err != nil {
		return nil, fmt.Errorf("line 1, column 1: %w", err)
	}
	return program, nil
}

// CheckCondition returns an error that names the position if an expression cannot be a policy's condition.
func CheckCondition(text string) error {
	_, err := compile(text, cel.BoolType)
	return err
}

// holds evaluates a condition. A field that the object does not have makes it false, and is no error.
func holds(text string, object map[string]any, modelURI string) (bool, error) {
	program, err := compile(text, cel.BoolType)
	if err != nil {
		return false, err
	}
	value, _, err := program.Eval(map[string]any{variable: object, modelVariable: modelURI})
	if err != nil {
		if strings.HasPrefix(err.Error(), "no such key") {
			return false, nil
		}
		return false, fmt.Errorf("evaluating: %w", err)
	}
	truth, ok := value.(types.Bool)
	if !ok {
		return false, errors.New("the result is neither true nor false")
	}
	return bool(truth), nil
}
