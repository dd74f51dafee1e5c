// Signing in and signing up.

import * as api from "./api.js";
import { byId } from "./dom.js";
import { t } from "./i18n.js";

const FIELDS = ["username", "email", "password", "otp", "invite"];

/** The form that signs in or up; `onSignedIn(user)` comes when that worked. */
export class AccountForm {
  constructor({ onSignedIn }) {
    this.onSignedIn = onSignedIn;
    this.form = byId("account-form");
    this.submit = byId("account-submit");
    this.message = byId("account-message");
    this.signingUp = false;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("account-switch").addEventListener("click", () => {
      this.signingUp = !this.signingUp;
      this.say(null);
      this.render();
      this.form.elements.username.focus();
    });
    byId("password-show").addEventListener("change", ({ target }) => {
      this.form.elements.password.type = target.checked ? "text" : "password";
    });
  }

  /** Show the form, with the words of `reason` where the user did not come by choice. */
  show(reason = null) {
    this.form.reset();
    this.form.elements.password.type = "password";
    this.asksOtp = this.asksInvite = false;
    this.signingUp = false;
    this.say(reason && t(reason), "info");
    this.render();
    this.form.elements.username.focus();
  }

  render() {
    const up = this.signingUp;
    byId("account-title").textContent = t(up ? "auth.create" : "auth.welcome");
    byId("account-text").textContent = t(up ? "auth.create.text" : "auth.welcome.text");
    byId("username-label").textContent = t(up ? "auth.username" : "auth.login");
    this.submit.textContent = t(up ? "auth.signup" : "auth.signin");
    byId("account-question").textContent = t(up ? "auth.have" : "auth.none");
    byId("account-switch").textContent = t(up ? "auth.signin" : "auth.signup");
    byId("email-field").hidden = !up;
    byId("invite-field").hidden = !(up && this.asksInvite);
    byId("otp-field").hidden = !(!up && this.asksOtp);
    byId("password-hint").hidden = !up;
    this.form.elements.password.autocomplete = up ? "new-password" : "current-password";
    for (const name of FIELDS) this.mark(name, null);
  }

  say(text, kind = "error") {
    this.message.hidden = !text;
    this.message.className = `notice ${kind}`;
    this.message.textContent = text || "";
  }

  mark(name, text) {
    const error = byId(`${name}-error`);
    error.hidden = !text;
    error.textContent = text || "";
    this.form.elements[name].setAttribute("aria-invalid", String(Boolean(text)));
  }

  /** The fields that are filled in, or null after marking those that must be. */
  read() {
    const values = {};
    let first = null;
    for (const name of FIELDS) {
      const input = this.form.elements[name];
      this.mark(name, null);
      if (byId(`${name}-field`).hidden) continue;
      values[name] = name === "password" ? input.value : input.value.trim();
      if (values[name]) continue;
      this.mark(name, t("auth.required"));
      first ??= input;
    }
    first?.focus();
    return first ? null : values;
  }

  async send() {
    if (this.submit.disabled) return;
    const values = this.read();
    if (!values) return;
    this.say(null);
    this.submit.disabled = true;
    this.submit.textContent = t("auth.busy");
    try {
      const user = await (this.signingUp ? api.signUp(values) : api.signIn(values));
      this.form.reset();
      this.onSignedIn(user);
    } catch (error) {
      this.refused(error);
    } finally {
      this.submit.disabled = false;
      this.submit.textContent = t(this.signingUp ? "auth.signup" : "auth.signin");
    }
  }

  refused(error) {
    if (error instanceof api.NetworkError) {
      this.say(t("app.unreachable"));
      return;
    }
    if (!(error instanceof api.ApiError)) throw error;
    if (error.code === "otp_required") {
      this.asksOtp = true;
      this.render();
      this.say(t("auth.otp.needed"), "info");
      this.form.elements.otp.focus();
      return;
    }
    const general = [];
    let first = null;
    for (const { attr, detail } of error.errors) {
      if (attr === "invite") this.asksInvite = true;
      if (!FIELDS.includes(attr)) {
        general.push(detail);
        continue;
      }
      byId(`${attr}-field`).hidden = false;
      this.mark(attr, detail);
      first ??= this.form.elements[attr];
    }
    if (general.length || !first) this.say([...new Set(general)].join(" ") || t("hint.failed"));
    (first || this.form.elements.password).focus();
  }
}
