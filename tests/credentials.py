"""Content Credentials for tests, signed with certificates made here."""

import datetime
import json

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MADE = datetime.datetime(2024, 1, 1)


def name_of(common_name: str) -> x509.Name:
    parts = {NameOID.ORGANIZATION_NAME: "Example Camera Maker", NameOID.COMMON_NAME: common_name}
    return x509.Name([x509.NameAttribute(*part) for part in parts.items()])


def make_certificate(subject, key, issuer, issuer_key):
    """A certificate, of an authority where subject and issuer are the same."""
    authority = subject == issuer
    usage = {
        name: False
        for name in ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    }
    usage |= {"digital_signature": True, "key_cert_sign": authority, "crl_sign": authority}
    extensions = [
        (x509.BasicConstraints(authority, None), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
        (x509.KeyUsage(**usage, encipher_only=False, decipher_only=False), True),
    ]
    if not authority:
        extensions.append((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False))
    builder = x509.CertificateBuilder(
        name_of(issuer), name_of(subject), key.public_key(), x509.random_serial_number()
    )
    builder = builder.not_valid_before(MADE).not_valid_after(MADE + datetime.timedelta(days=36500))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def sign(source, target, kind: str, source_type: str = GENERATED) -> str:
    """Write a signed copy of a media file of a MIME type; the root certificate in PEM."""
    pem = serialization.Encoding.PEM
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = make_certificate("Root", root_key, "Root", root_key).public_bytes(pem)
    chain = make_certificate("Camera", key, "Root", root_key).public_bytes(pem) + root
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    actions = {"actions": [{"action": "c2pa.created", "digitalSourceType": source_type}]}
    manifest = {
        "claim_generator_info": [{"name": "Example camera", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": actions}],
    }
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, private, None))
    with open(source, "rb") as plain, open(target, "w+b") as signed:
        c2pa.Builder(json.dumps(manifest)).sign(signer, kind, plain, signed)
    return root.decode()
