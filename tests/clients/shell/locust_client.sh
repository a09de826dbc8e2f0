# locust: `pip install locust`. Two users that ask and wait.

# ANCHOR: run
cat > "${TMPDIR:-/tmp}/asking.py" <<'END'
from locust import HttpUser, constant, task


class Asking(HttpUser):
    wait_time = constant(0.1)

    @task
    def chat(self):
        question = {"role": "user", "content": "Name three colours."}
        body = {"messages": [question], "max_tokens": 8, "temperature": 0}
        with self.client.post("/v1/chat/completions", json=body, catch_response=True) as answer:
            if not answer.json()["choices"][0]["message"]["content"]:
                answer.failure("no text")
END
# Fails when a request does.
locust --headless --host http://127.0.0.1:8000 --users 2 --spawn-rate 2 --run-time 4s \
    --locustfile "${TMPDIR:-/tmp}/asking.py" --only-summary
# ANCHOR_END: run
echo ok
