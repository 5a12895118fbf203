// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// The tensors that the model takes and gives in protocol V2.
const (
	inputPixels         = "pixels"
	inputID             = "id"
	outputLabel         = "label"
	outputProbabilities = "probabilities"
)

// row is one instance: either pixels or, if they are nil, an entity's id.
type row struct {
	// field is where the instance stands in the request, for error messages.
	field  string
	pixels []float32
	id     string
}

// tensor is an input of protocol V2, whichever way it came.
type tensor struct {
	name, datatype string
	shape          []int64
	// numbers or texts holds the elements in row-major order.
	numbers []float32
	texts   []string
}

// rowsOf turns the inputs of a V2 request into rows.
func rowsOf(inputs []tensor) ([]row, error) {
	if len(inputs) != 1 {
		return nil, invalid("inputs", "has %d tensors, want one: %q or %q", len(inputs), inputPixels, inputID)
	}
	in := inputs[0]
	n, width, err := in.dimensions()
	if err != nil {
		return nil, err
	}
	rows := make([]row, n)
	for i := range rows {
		rows[i].field = fmt.Sprintf("inputs[0] row %d", i)
		if in.name == inputID {
			rows[i].id = in.texts[i]
			continue
		}
		rows[i].pixels = slices.Clip(in.numbers[i*width : (i+1)*width])
		if err := checkPixels(rows[i]); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// dimensions checks name, type, shape and number of elements against each other.
func (t tensor) dimensions() (n, width int, err error) {
	elements, err := t.elements()
	if err != nil {
		return 0, 0, err
	}
	const field = "inputs[0].shape"
	if len(t.shape) == 0 || t.shape[0] < 1 || t.shape[0] > maxRows {
		return 0, 0, invalid(field, "is %v, want 1 to %d rows first", t.shape, maxRows)
	}
	if total := product(t.shape); total != int64(elements) {
		return 0, 0, invalid(field, "is %v, which does not fit the %d elements of the data", t.shape, elements)
	}
	n = int(t.shape[0])
	width = elements / n
	if t.name == inputID && width != 1 {
		return 0, 0, invalid(field, "is %v, want one id a row", t.shape)
	}
	return n, width, nil
}

// product multiplies the dimensions, or returns -1 if they are more than any request may hold or less than one.
func product(shape []int64) int64 {
	total := int64(1)
	for _, d := range shape {
		// The bounds keep the product far from overflow.
		if d < 1 || d > maxBody || total > maxBody {
			return -1
		}
		total *= d
	}
	return total
}

// elements counts them, once name and type fit together.
func (t tensor) elements() (int, error) {
	switch t.name {
	case inputID:
		if t.datatype != "BYTES" {
			return 0, invalid("inputs[0].datatype", "is %q, want BYTES for %q", t.datatype, t.name)
		}
		return len(t.texts), nil
	case inputPixels:
		if t.datatype != "FP32" && t.datatype != "UINT8" {
			return 0, invalid("inputs[0].datatype", "is %q, want FP32 or UINT8 for %q", t.datatype, t.name)
		}
		return len(t.numbers), nil
	}
	return 0, invalid("inputs[0].name", "is %q, want %q or %q", t.name, inputPixels, inputID)
}

// checkPixels refuses what no pixel can be, NaN and infinities among it.
func checkPixels(r row) error {
	for i, p := range r.pixels {
		if !(p >= 0 && p <= 255) {
			return invalid(r.field, "pixel %d is %v, want 0 to 255", i, p)
		}
	}
	return nil
}

// decodeV1 reads the body of a V1 prediction request.
func decodeV1(body []byte) ([]row, error) {
	var request struct {
		Instances *[]json.RawMessage `json:"instances"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return nil, invalid("body", "is not a V1 request: %v", err)
	}
	if request.Instances == nil {
		return nil, invalid("instances", "is missing")
	}
	if n := len(*request.Instances); n < 1 || n > maxRows {
		return nil, invalid("instances", "has %d entries, want 1 to %d", n, maxRows)
	}
	rows := make([]row, len(*request.Instances))
	for i, instance := range *request.Instances {
		var err error
		if rows[i], err = decodeInstance(fmt.Sprintf("instances[%d]", i), instance); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// decodeInstance reads {"id": "…"}, a list of pixels, or a list of lists of them.
func decodeInstance(field string, instance json.RawMessage) (row, error) {
	r := row{field: field}
	switch first := instance[0]; first {
	case '{':
		var entity struct {
			ID *string `json:"id"`
		}
		decoder := json.NewDecoder(bytes.NewReader(instance))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&entity); err != nil {
			return row{}, invalid(field, "is not an entity: %v", err)
		}
		if entity.ID == nil {
			return row{}, invalid(field+".id", "is missing")
		}
		r.id = *entity.ID
		return r, nil
	case '[':
		var err error
		if r.pixels, err = flatten(field, instance, maxDepth); err != nil {
			return row{}, err
		}
		return r, checkPixels(r)
	}
	return row{}, invalid(field, `is neither a list of pixels nor {"id": "…"}`)
}

// maxDepth bounds lists within lists: rows, channels, height, width. Each level reads the data again.
const maxDepth = 4

// flatten reads numbers in row-major order, from a list or from lists of equal length in lists. It returns no nil
// slice.
func flatten(field string, data json.RawMessage, depth int) ([]float32, error) {
	flat := []float32{}
	if json.Unmarshal(data, &flat) == nil && !bytes.Contains(data, []byte("null")) {
		return flat, nil
	}
	var nested []json.RawMessage
	if err := json.Unmarshal(data, &nested); err != nil {
		return nil, invalid(field, "is not a list of numbers")
	}
	flat = flat[:0]
	width := 0
	for i, inner := range nested {
		at := fmt.Sprintf("%s[%d]", field, i)
		numbers, err := flattenEntry(at, inner, depth)
		if err != nil {
			return nil, err
		}
		if i > 0 && (inner[0] == '[') != (nested[0][0] == '[') || i > 0 && len(numbers) != width {
			return nil, invalid(at, "is not of the same shape as the entries before it")
		}
		width, flat = len(numbers), append(flat, numbers...)
	}
	return flat, nil
}

// flattenEntry reads one entry of a list: a number or another list.
func flattenEntry(at string, entry json.RawMessage, depth int) ([]float32, error) {
	if entry[0] == '[' {
		if depth == 1 {
			return nil, invalid(at, "is a list more than %d levels deep", maxDepth)
		}
		return flatten(at, entry, depth-1)
	}
	var number *float32
	if err := json.Unmarshal(entry, &number); err != nil || number == nil {
		return nil, invalid(at, "is not a number that a float32 can hold")
	}
	return []float32{*number}, nil
}
