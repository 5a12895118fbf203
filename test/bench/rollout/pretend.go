// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appsclient "k8s.io/client-go/kubernetes/typed/apps/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// pretend says of every Deployment and ReplicaSet that its pods are ready, as nobody else does here.
func pretend(ctx context.Context, config *rest.Config) error {
	clientset, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	workloads, apps := informers.NewSharedInformerFactory(clientset, 0), clientset.AppsV1()
	for informer, see := range map[cache.SharedIndexInformer]func(any){
		workloads.Apps().V1().Deployments().Informer(): func(object any) { readyDeployment(ctx, apps, object) },
		workloads.Apps().V1().ReplicaSets().Informer(): func(object any) { readyReplicaSet(ctx, apps, object) },
	} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: see, UpdateFunc: func(_, now any) { see(now) },
		}); err != nil {
			return fmt.Errorf("watching workloads: %w", err)
		}
	}
	workloads.Start(ctx.Done())
	return nil
}

// A conflict is followed by another event, so that no error matters to those below.

func readyDeployment(ctx context.Context, apps appsclient.AppsV1Interface, object any) {
	d, ok := object.(*appsv1.Deployment)
	if !ok || d.Status.ReadyReplicas == *d.Spec.Replicas && d.Status.ObservedGeneration == d.Generation {
		return
	}
	d = d.DeepCopy()
	n := *d.Spec.Replicas
	d.Status = appsv1.DeploymentStatus{
		ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, ReadyReplicas: n, AvailableReplicas: n,
		Conditions: []appsv1.DeploymentCondition{
			{Type: appsv1.DeploymentAvailable, Status: corev1.ConditionTrue, Reason: "MinimumReplicasAvailable"},
			{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue, Reason: "NewReplicaSetAvailable"},
		},
	}
	_, _ = apps.Deployments(d.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
}

func readyReplicaSet(ctx context.Context, apps appsclient.AppsV1Interface, object any) {
	rs, ok := object.(*appsv1.ReplicaSet)
	if !ok || rs.Status.ReadyReplicas == *rs.Spec.Replicas && rs.Status.ObservedGeneration == rs.Generation {
		return
	}
	rs = rs.DeepCopy()
	n := *rs.Spec.Replicas
	rs.Status = appsv1.ReplicaSetStatus{
		ObservedGeneration: rs.Generation, Replicas: n, FullyLabeledReplicas: n, ReadyReplicas: n, AvailableReplicas: n,
	}
	_, _ = apps.ReplicaSets(rs.Namespace).UpdateStatus(ctx, rs, metav1.UpdateOptions{})
}
