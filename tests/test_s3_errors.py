"""What S3 answers: each code has its cause, advice and id, also after a HEAD without a body."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.storage import causes
from pipeline.storage.s3 import ObjectStore
from tests.loopback_s3 import LoopbackS3

# Status and code of S3 -> id, and a word that its advice must hold.
ANSWERS = {
    (403, "RequestTimeTooSkewed"): (397, "clock"),
    (400, "ExpiredToken"): (398, "AWS_SESSION_TOKEN"),
    (403, "InvalidAccessKeyId"): (399, "AWS_ACCESS_KEY_ID"),
    (403, "SignatureDoesNotMatch"): (400, "AWS_SECRET_ACCESS_KEY"),
    (400, "InvalidToken"): (401, "AWS_SESSION_TOKEN"),
    (301, "PermanentRedirect"): (402, "AWS_DEFAULT_REGION"),
    (400, "AuthorizationHeaderMalformed"): (402, "AWS_DEFAULT_REGION"),
    (403, "AccessDenied"): (391, "policy"),
    (403, "SomethingNew"): (391, "policy"),
    (403, "InvalidObjectState"): (403, "restore"),
    (403, "QuotaExceeded"): (404, "quota"),
    (507, "XMinioStorageFull"): (404, "quota"),
    (400, "KMS.DisabledException"): (405, "KMS"),
    (400, "KMS.SomethingNew"): (405, "KMS"),
    (404, "NoSuchBucket"): (392, "bucket"),
    (400, "InvalidBucketName"): (406, "name"),
    (403, "AccountProblem"): (407, "account"),
    (501, "NotImplemented"): (410, "AWS_ENDPOINT_URL"),
    (405, "MethodNotAllowed"): (410, "AWS_ENDPOINT_URL"),
    (400, "SomethingNew"): (3, "AWS_ENDPOINT_URL"),
    (503, "SlowDown"): (396, "object store"),
    (500, "InternalError"): (396, "object store"),
}
STORE = ObjectStore(deadline_s=0.0)
CALLS: dict[str, Callable[[str], object]] = {
    "read": STORE.read,
    "size": STORE.size,
    "exists": STORE.exists,
    "open": STORE.open,
    "list": STORE.tree,
    "names": STORE.children,
    "delete": STORE.delete_tree,
    "write": lambda uri: STORE.write(uri, b""),
}


@pytest.mark.promise("O2", "R13")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("status", "code"), ANSWERS)
def test_each_code_of_s3_has_its_cause(status: int, code: str, call: str, s3: LoopbackS3) -> None:
    s3.refusals["refused"] = status, code
    with pytest.raises(StorageError) as caught:
        CALLS[call]("s3://refused/photos/x.jpg")
    number, word = ANSWERS[status, code]
    error = caught.value
    assert error.id == f"E-STORAGE-{number:03d}", error
    assert code in error.what and f"{code} on purpose" in error.what
    assert word in error.todo and "{" not in error.what + error.todo


@pytest.mark.parametrize("code", ["InvalidObjectState", "QuotaExceeded", "SomethingNew"])
def test_a_place_that_refuses_is_not_writable(code: str, s3: LoopbackS3) -> None:
    s3.refusals["refused"] = 403, code
    with pytest.raises(StorageError):
        storage.check_writable("s3://refused/runs")


def test_a_missing_object_is_not_a_missing_bucket(s3: LoopbackS3) -> None:
    for call in (STORE.read, STORE.size, STORE.open):
        with pytest.raises(StorageError) as caught:
            call("s3://bucket/none")
        assert caught.value.id == "E-STORAGE-393" and storage.is_missing(caught.value)
        with pytest.raises(StorageError) as caught:
            call("s3://nobucket/none")
        assert caught.value.id == "E-STORAGE-392" and not storage.is_missing(caught.value)


def test_an_endpoint_that_is_a_web_page_is_named(
    s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.loopback_s3._Handler._listing", web_page)
    with pytest.raises(StorageError) as caught:
        STORE.tree("s3://bucket/x")
    # botocore calls an answer that is no XML an internal error.
    assert caught.value.id == "E-STORAGE-396" and "AWS_ENDPOINT_URL" in caught.value.todo


def web_page(handler: object, *_: object) -> None:
    handler._answer(200, b"<html><p>console<br></html>")  # type: ignore[attr-defined]


VARIABLES = {
    ("AWS_ENDPOINT_URL", "127.0.0.1:9000"), ("AWS_ENDPOINT_URL", "localhost"),
    ("AWS_ENDPOINT_URL", "minio.internal:9000/"), ("AWS_ENDPOINT_URL", "http://"),
    ("AWS_ENDPOINT_URL", "http://h:port"), ("AWS_ENDPOINT_URL", " http://h"),
    ("AWS_ENDPOINT_URL_S3", "h"), ("AWS_ACCESS_KEY_ID", "a b"), ("AWS_SECRET_ACCESS_KEY", "a\nb"),
    ("AWS_SESSION_TOKEN", "\u00e9"), ("AWS_DEFAULT_REGION", "eu central"),
    ("AWS_MAX_ATTEMPTS", "many"), ("AWS_MAX_ATTEMPTS", "0"), ("AWS_RETRY_MODE", "never"),
    ("AWS_METADATA_SERVICE_TIMEOUT", "soon"), ("AWS_REQUEST_CHECKSUM_CALCULATION", "never"),
    ("AWS_ENDPOINT_URL", "http://user:KEY@h:9000"), ("AWS_CA_BUNDLE", "/nowhere.pem"),
    ("HTTPS_PROXY", "http://h:port"), ("http_proxy", "a b"),
}  # fmt: skip


@pytest.mark.promise("O6")
@pytest.mark.parametrize(("name", "value"), sorted(VARIABLES))
def test_a_variable_of_a_wrong_form_is_named_and_its_value_is_not(
    name: str, value: str, s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("s3://bucket/x")
    assert caught.value.id == "E-STORAGE-413" and caught.value.exit_code == 4
    assert name in caught.value.what and name in caught.value.todo and s3.log == []
    assert "KEY" not in name + value or value not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_PROFILE", "nobody"),
        ("AWS_DEFAULTS_MODE", "odd"),
        ("AWS_STS_REGIONAL_ENDPOINTS", "odd"),
    ],
)
def test_what_only_the_client_refuses_is_named_too(
    name: str, value: str, s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    try:
        storage.exists("s3://bucket/x")
    except StorageError as error:
        assert error.id == "E-STORAGE-411" and error.todo
        assert name in error.todo or value in error.what


def test_each_id_is_that_of_one_cause() -> None:
    listed = [*causes.S3, *causes.LOCAL, causes.LOCAL_OTHER, causes.S3_OTHER, causes.NO_ANSWER]
    found = {cause.id: cause for cause in listed}
    assert len({id(cause) for cause in listed}) == len(found)
    codes = [code for cause in causes.S3 for code in cause.codes]
    assert len(codes) == len(set(codes))


@pytest.mark.promise("R13")
def test_a_passing_fault_of_a_look_up_does_not_turn_into_a_missing_object(s3: LoopbackS3) -> None:
    storage.write_bytes("s3://bucket/folder/object", b"x")
    s3.faults.append(503)  # the folder itself is no object: the second question answers 404
    assert storage.exists("s3://bucket/folder")
    assert not storage.exists("s3://bucket/another")
