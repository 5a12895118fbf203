// SPDX-License-Identifier: Apache-2.0

// Package prometheus asks a Prometheus for numbers. It tells "no data" from "no answer", follows no redirect, reads no
// more than a bounded answer, and its errors hold neither addresses nor what the server wrote, since both may be none of
// the reader's business.
package prometheus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// maxAnswer bounds what is read of an answer, in bytes. The series of a thousand pods take a tenth of it.
const maxAnswer = 16 << 20

// Client asks one Prometheus. It may be used by several goroutines at once.
type Client struct {
	api promv1.API
}

// Point is a value at a time.
type Point struct {
	At    time.Time
	Value float64
}

// New returns a Client for a Prometheus at an http or https URL.
func New(url string) (*Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one.
	c, err := api.NewClient(api.Config{Address: url, Client: &http.Client{
		Transport:     bounded{transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}})
	if err != nil {
		return nil, errors.New("the address of Prometheus is no URL")
	}
	return &Client{api: promv1.NewAPI(c)}, nil
}

// bounded limits the length of answers.
type bounded struct {
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := b.next.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(response.Body, maxAnswer), response.Body}
	return response, nil
}

// Number evaluates an expression that gives one number. It reports false if it gives none; one that is not finite is an
// error, since it must not pass for none.
func (c *Client) Number(ctx context.Context, query string, at time.Time) (float64, bool, error) {
	value, _, err := c.api.Query(ctx, query, at)
	if err != nil {
		return 0, false, explain(ctx, err)
	}
	switch value := value.(type) {
	case *model.Scalar:
		return finite(float64(value.Value))
	case model.Vector:
		if len(value) > 1 {
			return 0, false, fmt.Errorf("the query gives %d series instead of one: aggregate them", len(value))
		}
		if len(value) == 0 {
			return 0, false, nil
		}
		return finite(float64(value[0].Value))
	default:
		return 0, false, fmt.Errorf("the query gives a %s instead of a number", value.Type())
	}
}

var errNotFinite = errors.New("the query gives a value that is not finite")

func finite(value float64) (float64, bool, error) {
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return 0, false, errNotFinite
	}
	return value, true, nil
}

// Buckets evaluates an expression that gives a number for every value of the label le.
func (c *Client) Buckets(ctx context.Context, query string, at time.Time) (map[float64]float64, error) {
	value, _, err := c.api.Query(ctx, query, at)
	if err != nil {
		return nil, explain(ctx, err)
	}
	vector, ok := value.(model.Vector)
	if !ok {
		return nil, fmt.Errorf("the query gives a %s instead of buckets", value.Type())
	}
	buckets := make(map[float64]float64, len(vector))
	for _, sample := range vector {
		bound, err := strconv.ParseFloat(string(sample.Metric[model.BucketLabel]), 64)
		if err != nil {
			return nil, errors.New("the query gives series without the label le: it is no histogram")
		}
		count, _, err := finite(float64(sample.Value))
		if err != nil {
			return nil, err
		}
		buckets[bound] += count // 1 and 1.0 are one bucket, which pods may write differently
	}
	return buckets, nil
}

// Series evaluates an expression that gives one number at every step from one time to another. What is not finite is
// left out.
func (c *Client) Series(ctx context.Context, query string, from, to time.Time, step time.Duration) ([]Point, error) {
	value, _, err := c.api.QueryRange(ctx, query, promv1.Range{Start: from, End: to, Step: step})
	if err != nil {
		return nil, explain(ctx, err)
	}
	matrix, ok := value.(model.Matrix)
	if !ok {
		return nil, fmt.Errorf("the query gives a %s instead of a series", value.Type())
	}
	if len(matrix) > 1 {
		return nil, fmt.Errorf("the query gives %d series instead of one: aggregate them", len(matrix))
	}
	var points []Point
	for _, series := range matrix {
		for _, sample := range series.Values {
			if value, ok, _ := finite(float64(sample.Value)); ok {
				points = append(points, Point{At: sample.Timestamp.Time(), Value: value})
			}
		}
	}
	return points, nil
}

// explain says what went wrong, and no more than a reader of a status may know.
func explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("Prometheus did not answer in time") //nolint:staticcheck // a name begins with a capital.
	}
	failure, ok := errors.AsType[*promv1.Error](err)
	if !ok {
		return errors.New("Prometheus cannot be reached") //nolint:staticcheck // the same.
	}
	switch failure.Type {
	case promv1.ErrBadData, promv1.ErrExec:
		return fmt.Errorf("Prometheus refuses the query: %.120s", failure.Msg) //nolint:staticcheck // the same.
	default:
		return fmt.Errorf("Prometheus answers with an error (%s)", failure.Type) //nolint:staticcheck // the same.
	}
}
