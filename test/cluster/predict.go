// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"serverless.xyz/outrigger/samples/predictor/model"
)

// Answer is what a predictor says over KServe's V1 protocol.
type Answer struct {
	// ModelVersion is the version that answered.
	ModelVersion string `json:"model_version"`
	// Predictions are the digits that it recognised, in the order of the request.
	Predictions []int `json:"predictions"`
	// Hits and Misses are look-ups of features in the cache.
	Hits, Misses int `json:"-"`
}

// Correct counts the predictions that are right.
func (a Answer) Correct(digits []model.Digit) int {
	correct := 0
	for i, prediction := range a.Predictions {
		if i < len(digits) && prediction == digits[i].Label {
			correct++
		}
	}
	return correct
}

// Predict asks the predictor in a pod for digits by their ids.
func (c *Cluster) Predict(ctx context.Context, pod *corev1.Pod, modelName string, digits []model.Digit) (Answer, error) {
	type instance struct {
		ID string `json:"id"`
	}
	var body struct {
		Instances []instance `json:"instances"`
	}
	for _, digit := range digits {
		body.Instances = append(body.Instances, instance{ID: digit.ID})
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return Answer{}, fmt.Errorf("writing a request: %w", err)
	}
	url := "http://" + net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(8080)) + "/v1/models/" + modelName + ":predict"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(raw))
	if err != nil {
		return Answer{}, fmt.Errorf("making a request: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.HTTP.Do(request)
	if err != nil {
		return Answer{}, fmt.Errorf("asking %s: %w", pod.Name, err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return Answer{}, fmt.Errorf("reading the answer of %s: %w", pod.Name, err)
	}
	if response.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("asking %s: %s: %s", pod.Name, response.Status, text)
	}
	var answer Answer
	if err := json.Unmarshal(text, &answer); err != nil {
		return Answer{}, fmt.Errorf("reading the answer of %s: %w", pod.Name, err)
	}
	if header := response.Header.Get("X-Feature-Cache"); header != "" && header != "off" {
		if _, err := fmt.Sscanf(header, "hits=%d misses=%d", &answer.Hits, &answer.Misses); err != nil {
			return Answer{}, fmt.Errorf("reading X-Feature-Cache %q: %w", header, err)
		}
	}
	return answer, nil
}
