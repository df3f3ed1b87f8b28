"""Make and remove people in the platform's realm. Runs on ai_server as root, with Salt's Python.

Standard input: ``{name: {"password", "roles"}}``; nobody (null) in place of a person removes them.
"""

import json
import shlex
import sys
from pathlib import Path

from keycloak import KeycloakAdmin

lines = Path("/etc/ai-platform-containers/keycloak/secrets.env").read_text().splitlines()
known = {key: "".join(shlex.split(value)) for key, _, value in (line.partition("=") for line in lines)}
password = known["KC_BOOTSTRAP_ADMIN_PASSWORD"]
admin = KeycloakAdmin(server_url="http://127.0.0.1:8180", username="admin", password=password)
# The administrator is one of realm master: the login comes before the realm is changed.
admin.connection.get_token()
admin.change_current_realm("ai-platform")
for name, person in json.load(sys.stdin).items():
    there = admin.get_user_id(name)
    if there:
        admin.delete_user(there)
    if person:
        credential = {"type": "password", "value": person["password"], "temporary": False}
        details = {"email": f"{name}@lab.internal", "firstName": "Lab", "lastName": name, "enabled": True}
        made = admin.create_user({"username": name, "credentials": [credential], "emailVerified": True, **details})
        admin.assign_realm_roles(made, [admin.get_realm_role(role) for role in person["roles"]])
