"""KubeRay's RayJob (ray.io/v1) as a JSON schema: every field of its custom resources, and of pods those that a template here may use.

Written down from the Go types of KubeRay 1.x (`ray-operator/apis/ray/v1`) and of Kubernetes' core/v1; the published resource definition says the same in
20,000 lines.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
SHARE: Schema = {"type": "number", "minimum": 0}
ANYTHING: Schema = {"type": "object"}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY: Schema = {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def fields(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


AMOUNTS: Schema = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = fields(limits=AMOUNTS, requests=AMOUNTS)
CONTAINER = fields(
    ("name", "image"),
    name=NAME,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    command=many(TEXT),
    args=many(TEXT),
    env=many(fields(("name",), name=TEXT, value=TEXT, valueFrom=ANYTHING)),
    ports=many(
        fields(
            ("containerPort",),
            containerPort={"type": "integer", "minimum": 1, "maximum": 65535},
            name={**NAME, "maxLength": 15},
            protocol=one_of("TCP", "UDP", "SCTP"),
        )
    ),
    resources=RESOURCES,
    volumeMounts=many(
        fields(("name", "mountPath"), name=NAME, mountPath={"type": "string", "pattern": "^/"}, readOnly=FLAG)
    ),
    securityContext=ANYTHING,
)
VOLUME = {
    **fields(
        ("name",),
        name=NAME,
        persistentVolumeClaim=fields(("claimName",), claimName=NAME, readOnly=FLAG),
        emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=QUANTITY),
        configMap=ANYTHING,
        secret=ANYTHING,
    ),
    "minProperties": 2,
    "maxProperties": 2,
}
POD = fields(
    ("spec",),
    metadata=fields(labels=TEXTS, annotations=TEXTS),
    spec=fields(
        ("containers",),
        containers={**many(CONTAINER), "minItems": 1},
        initContainers=many(CONTAINER),
        volumes=many(VOLUME),
        nodeSelector=TEXTS,
        tolerations=many(ANYTHING),
        affinity=ANYTHING,
        serviceAccountName=NAME,
        imagePullSecrets=many(fields(("name",), name=NAME)),
        restartPolicy=one_of("Always", "OnFailure", "Never"),
        terminationGracePeriodSeconds=COUNT,
    ),
)
HEAD = fields(
    ("template",),
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    headService=ANYTHING,
    enableIngress=FLAG,
    rayStartParams=TEXTS,
    template=POD,
)
WORKERS = fields(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    rayStartParams=TEXTS,
    scaleStrategy=fields(workersToDelete=many(TEXT)),
    template=POD,
)
CLUSTER = fields(
    ("headGroupSpec",),
    headGroupSpec=HEAD,
    workerGroupSpecs=many(WORKERS),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=ANYTHING,
    gcsFaultToleranceOptions=ANYTHING,
    headServiceAnnotations=TEXTS,
    suspend=FLAG,
    managedBy=TEXT,
)
RAYJOB = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=one_of("ray.io/v1"),
    kind=one_of("RayJob"),
    metadata=fields(("name",), name={**NAME, "maxLength": 47}, namespace=NAME, labels=TEXTS, annotations=TEXTS),
    spec=fields(
        (),
        activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT,
        clusterSelector=TEXTS,
        deletionStrategy=ANYTHING,
        entrypoint=TEXT,
        entrypointNumCpus=SHARE,
        entrypointNumGpus=SHARE,
        entrypointResources=TEXT,
        jobId=TEXT,
        managedBy=TEXT,
        metadata=TEXTS,
        rayClusterSpec=CLUSTER,
        runtimeEnvYAML=TEXT,
        shutdownAfterJobFinishes=FLAG,
        submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        submitterConfig=fields(backoffLimit=COUNT),
        submitterPodTemplate=POD,
        suspend=FLAG,
        ttlSecondsAfterFinished=COUNT,
    ),
)
